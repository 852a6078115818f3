// API keys: who may do what. A new key's secret is shown once.

import { get, post, remove } from "./api.js";
import { sure } from "./dialog.js";
import { busy, button, el, field } from "./dom.js";
import { when } from "./format.js";
import { say, showError } from "./say.js";
import { copier } from "./saving.js";

const SCOPES = {
  files: "upload and delete files", jobs: "start and stop jobs", models: "list and delete models",
  inference: "ask models", keys: "manage keys",
};

export async function show(main, { signal }) {
  const failed = el("div"), secret = el("div");
  const list = el("ul.rows", { "aria-label": "Keys" });
  const { data } = await get("/v1/keys", { signal });
  list.append(...data.map((key) => row(key, failed, signal)));
  main.append(
    el("h1", { tabindex: "-1" }, "Keys"), failed,
    el("section", el("h2", "New key"), form(list, secret, failed, signal), secret),
    el("section", el("h2", "Keys of this tenant"), list),
  );
}

function form(list, secret, failed, signal) {
  const name = el("input", { type: "text", required: true, maxlength: "100", autocomplete: "off" });
  const boxes = Object.keys(SCOPES).map((scope) => el("input", { type: "checkbox", value: scope, checked: scope !== "keys" }));
  const make = el("button.primary", { type: "submit" }, "Make the key");
  const create = async () => {
    const scopes = boxes.filter((box) => box.checked).map((box) => box.value);
    const made = await post("/v1/keys", { name: name.value, scopes }, { signal });
    showError(failed, null);
    list.prepend(row(made, failed, signal));
    showSecret(secret, made);
    name.value = "";
  };
  const submit = (event) => {
    event.preventDefault();
    busy(make, create, (error) => showError(failed, error, "No key was made"));
  };
  return el("form.form", { onsubmit: submit },
    el("div.narrow", field("Name", name, "What it is for, so that you know it again.")),
    el("fieldset", el("legend", "What it may do"), el("div.choices", boxes.map((box) => el("label.choice", box, SCOPES[box.value])))),
    el("div.buttons", make));
}

function showSecret(place, made) {
  const heading = el("h3", { tabindex: "-1" }, `The key “${made.name}”`);
  place.replaceChildren(el("div.notice.better", heading,
    el("p", "Copy it now: it cannot be shown again."), el("code.secret", made.secret), el("p", copier(made.secret, "Copy the key", "Copy the key"))));
  heading.focus();
}

function row(key, failed, signal) {
  const used = key.last_used_at ? `last used ${when(key.last_used_at)}` : "never used";
  const revoke = () => drop(key, line, failed, signal);
  const line = el("li.row",
    el("span.title", key.name),
    el("div.about", el("span.mono", key.hint), el("span", key.scopes.join(", ")), el("span", `made ${when(key.created_at)}`), el("span", used)),
    el("div.aside", key.revoked_at ? el("span.status", `Revoked ${when(key.revoked_at)}`)
      : el("div.buttons", button("Revoke", revoke, { kind: "quiet", "aria-label": `Revoke ${key.name}`, failed: (error) => showError(failed, error) }))));
  return line;
}

async function drop(key, line, failed, signal) {
  if (!(await sure(`Revoke “${key.name}”?`, "Whoever uses it is refused from now on. This cannot be undone.", "Revoke the key"))) return;
  const gone = await remove(`/v1/keys/${key.id}`, { signal });
  const after = row(gone, failed, signal);
  line.replaceWith(after);
  say("The key is revoked.");
  document.querySelector("h1").focus();
}
