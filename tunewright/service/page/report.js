// A job's report, in a frame that runs no scripts.

import { ask } from "./api.js";
import { button, el } from "./dom.js";
import { showError } from "./say.js";
import { save } from "./saving.js";

/** Buttons that show the report of a job and save it. */
export function reportSection(id, signal) {
  const place = el("div");
  const failed = (error) => showError(place, error, "The report could not be fetched");
  const text = async () => (await ask("GET", `/v1/fine_tuning/jobs/${id}/report`, undefined, signal)).text();
  return el("section",
    el("h2", "Report"),
    el("p.note", "What the run did to the model: base and tuned model compared, with how sure one can be."),
    el("div.buttons",
      button("Show the report", async () => place.replaceChildren(frame(await text())), { failed }),
      button("Save it", async () => save(`${id}.html`, await text(), "text/html"), { failed })),
    place,
  );
}

function frame(html) {
  const address = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  const node = el("iframe.report", { src: address, title: "Report", sandbox: "allow-same-origin" });
  node.addEventListener("load", () => {
    URL.revokeObjectURL(address);
    dress(node.contentDocument);
  });
  return node;
}

/** The frame has this page's policy, which forbids styles that stand in a document: give them to it as they may come. */
function dress(page) {
  const styles = [...page.querySelectorAll("style")].map((style) => {
    const sheet = new page.defaultView.CSSStyleSheet();
    sheet.replaceSync(style.textContent);
    return sheet;
  });
  page.adoptedStyleSheets = styles;
  for (const node of page.querySelectorAll("[style]")) node.style.cssText = node.getAttribute("style");
}
