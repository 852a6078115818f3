// A place for a file: it is dropped there, or chosen as files are.

import { el } from "./dom.js";

/** `take` is given the File. */
export function dropzone(name, take) {
  const input = el("input", { type: "file", onchange: () => give(input.files) });
  const zone = el("label.drop", input, el("span", el("b", name), ": drop it here, or press to choose"));
  const give = (files) => {
    if (files.length) take(files[0]);
    input.value = ""; // so that the same file can be chosen again once it is mended
  };
  const over = (is) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", is);
  };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    give(event.dataTransfer.files);
  });
  return zone;
}
