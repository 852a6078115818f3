// Sign in: a key is tried with a harmless request, and kept for this tab.

import { ask } from "./api.js";
import { busy, el, field } from "./dom.js";
import { showError } from "./say.js";
import { session } from "./session.js";

export function show(main, { why, signal }) {
  // without a name, the field is in no address even where the form is sent without this script
  const key = el("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const failed = el("div");
  const enter = el("button.primary", { type: "submit" }, "Sign in");
  const submit = (event) => {
    event.preventDefault();
    busy(enter, () => signIn(key.value.trim(), signal), (error) => refuse(error, key, failed));
  };
  main.append(
    el("h1", { tabindex: "-1" }, "Sign in"),
    el("p.note", "With an API key of this service. It is kept in this tab until you close it or sign out."),
    el("form.form.narrow", { onsubmit: submit, novalidate: true },
      field("API key", key, "It begins with tw-. Whoever started the service was shown one; others are made under Keys."),
      el("div.buttons", enter), failed),
  );
  if (why) showError(failed, { message: why }, "You were signed out");
  key.focus();
}

async function signIn(key, signal) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw { message: key ? "This is no key: keys are letters, digits and - alone." : "Enter your key." };
  try {
    await ask("GET", "/v1/models", undefined, signal, key);
  } catch (error) {
    if (error.status !== 403) throw error; // a key that may not list models is a key
  }
  session.begin(key);
}

function refuse(error, key, place) {
  showError(place, error, "You are not signed in");
  key.setAttribute("aria-invalid", "true");
  key.focus();
  key.select();
}
