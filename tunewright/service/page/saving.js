// Things that the user takes away: files, and names that are to be typed elsewhere.

import { el } from "./dom.js";
import { say } from "./say.js";

/** Save bytes or text under a name. */
export function save(name, content, type = "application/octet-stream") {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Results are base64 around a table, as clients of OpenAI's expect it. */
export const decoded = (text) => Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));

/** A button that copies a text. */
export function copier(text, name = "Copy", label = `${name} ${text}`) {
  const node = el("button.quiet", { type: "button", "aria-label": label }, name);
  node.addEventListener("click", async () => {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyOldWay(text, node);
    node.textContent = "Copied";
    say("Copied");
    setTimeout(() => (node.textContent = name), 2000);
  });
  return node;
}

/** Browsers hide the clipboard from pages that came over plain HTTP, unless from this machine. */
function copyOldWay(text, beside) {
  const held = el("textarea.sr", { readonly: true, "aria-hidden": "true", value: text });
  beside.after(held);
  held.select();
  document.execCommand("copy");
  held.remove();
  beside.focus();
}
