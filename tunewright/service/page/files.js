// Files that were uploaded, and those that jobs made.

import { all, ask, remove, upload } from "./api.js";
import { sure } from "./dialog.js";
import { button, el } from "./dom.js";
import { dropzone } from "./dropzone.js";
import { bytes, when } from "./format.js";
import { say, showError } from "./say.js";
import { decoded, save } from "./saving.js";

export async function show(main, { signal }) {
  const failed = el("div");
  const list = el("ul.rows", { "aria-label": "Files" });
  const made = el("ul.rows", { "aria-label": "Files that jobs made" });
  const folded = el("details", { hidden: true }, el("summary", "Files that jobs made"), made);
  const none = el("p.empty", "No files yet.");
  const put = (file, first) => {
    const isMade = file.purpose === "fine-tune-results"; // one of each job: they would bury what was uploaded
    (isMade ? made : list)[first ? "prepend" : "append"](row(file, failed, signal));
    if (isMade) folded.hidden = false;
    else none.hidden = true;
  };
  const bar = el("progress", { max: 1, value: 0, "aria-label": "Upload", hidden: true });
  const take = (file) => send(file, bar, failed, signal).then((kept) => kept && put(kept, true));
  (await all("/v1/files?limit=1000", { signal })).forEach((file) => put(file, false));
  main.append(el("h1", { tabindex: "-1" }, "Files"), failed, el("section", dropzone("Upload a file", take), bar), el("section", none, list, folded));
}

async function send(file, bar, failed, signal) {
  bar.hidden = false;
  try {
    const kept = await upload(file, (share) => (bar.value = share), signal);
    say(`${kept.filename} is uploaded.`);
    showError(failed, null);
    return kept;
  } catch (error) {
    if (error.name !== "AbortError") showError(failed, error, "The file was not uploaded");
    return null;
  } finally {
    bar.hidden = true;
  }
}

function row(file, place, signal) {
  const failed = (error) => showError(place, error);
  const named = (word) => ({ kind: "quiet", "aria-label": `${word} ${file.filename}`, failed });
  const line = el("li.row",
    el("span.title", file.filename),
    el("div.about", el("span", bytes(file.bytes)), el("span", file.purpose), el("span", when(file.created_at)), el("span.mono", file.id)),
    el("div.aside", el("div.buttons",
      button("Save", () => fetchFile(file, signal), named("Save")),
      button("Delete", () => drop(file, line, signal), named("Delete")),
      file.purpose === "fine-tune" && el("a.button", { href: `#/new?file=${file.id}`, "aria-label": `New job with ${file.filename}` }, "Use it"))));
  return line;
}

async function fetchFile(file, signal) {
  const content = await ask("GET", `/v1/files/${file.id}/content`, undefined, signal);
  save(file.filename, file.purpose === "fine-tune-results" ? decoded(await content.text()) : await content.blob());
}

async function drop(file, line, signal) {
  if (!(await sure("Delete this file?", `${file.filename} is gone at once. Jobs that use it keep it until they have ended.`, "Delete the file"))) return;
  await remove(`/v1/files/${file.id}`, { signal });
  const next = (line.nextElementSibling ?? line.previousElementSibling)?.querySelector("button");
  line.remove();
  say("The file is deleted.");
  (next ?? document.querySelector("h1")).focus();
}
