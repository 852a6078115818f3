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

/** A document of its own, whose policy lets a report's styles act, and nothing else: this page's would forbid them too. */
function frame(html) {
  const node = el("iframe.report", { src: "/page/report.html", title: "Report", sandbox: "allow-same-origin" });
  node.addEventListener("load", () => (node.contentDocument.documentElement.innerHTML = html), { once: true });
  return node;
}
