// The list of jobs, newest first, kept up to date.

import { get } from "./api.js";
import { button, el } from "./dom.js";
import { duration, when } from "./format.js";
import { baseOf, isTuned } from "./names.js";
import { say } from "./say.js";
import { badge, hasEnded, statusWord, titleOf } from "./status.js";

const PAGE = 20;
const SECONDS = 3;

export async function show(main, { signal }) {
  const shown = { list: el("ul.rows", { "aria-label": "Jobs" }), known: new Map(), signal };
  const older = button("Show older jobs", async () => {
    older.hidden = !(await load(shown, shown.list.lastElementChild.dataset.job));
  });
  older.hidden = !(await load(shown));
  main.append(
    el("div.headline", el("h1", { tabindex: "-1" }, "Jobs"), el("a.button.primary", { href: "#/new" }, "New job")),
    shown.known.size ? shown.list : empty(), older,
  );
  keepFresh(shown, main);
}

function empty() {
  return el("p.empty", { id: "no-jobs" }, "No jobs yet. A job takes a base and a file of examples, and makes a model of your own: ",
    el("a", { href: "#/new" }, "start one"), ".");
}

/** The newest jobs, or those behind `after`. Whether there are more. */
async function load(shown, after = "") {
  const glue = after && `&after=${encodeURIComponent(after)}`;
  const page = await get(`/v1/fine_tuning/jobs?limit=${PAGE}${glue}`, { signal: shown.signal });
  const steps = await Promise.all(page.data.map((job) => progressOf(job, shown.signal)));
  const rows = page.data.map((job, index) => draw(shown, job, steps[index]));
  if (after) shown.list.append(...rows);
  else for (const row of rows.reverse()) if (!row.parentNode) shown.list.prepend(row);
  return page.has_more;
}

/** A job's row; where there is one, what is new in it, so that the focus stays where it is. */
function draw(shown, job, progress) {
  const known = shown.known.get(job.id);
  if (known && known.status !== job.status) say(`${titleOf(job)}: ${statusWord(job.status)}`);
  const row = known?.row ?? el("li.row", { "data-job": job.id }, el("a.title"), el("div.about"), el("div.aside"));
  shown.known.set(job.id, { row, status: job.status });
  const [title, about, aside] = row.children;
  title.href = `#/jobs/${job.id}`;
  title.textContent = titleOf(job);
  about.replaceChildren(
    el("span", `from ${isTuned(job.model) ? `a tuned ${baseOf(job.model)}` : job.model}`), el("span", job.method.type),
    el("time", { datetime: new Date(job.created_at * 1000).toISOString() }, when(job.created_at)), el("span.mono", job.id),
  );
  aside.replaceChildren(badge(job.status), ...(progress ? bar(job, progress) : []));
  return row;
}

function bar(job, { step, total }) {
  const left = job.estimated_finish && job.status === "running" ? job.estimated_finish - Date.now() / 1000 : 0;
  return [
    el("progress", { max: total, value: step, "aria-label": `Progress of ${titleOf(job)}` }),
    el("p.about", `Step ${step} of ${total}${left > 1 ? `, ${duration(left)} left` : ""}`),
  ];
}

/** How far a job has come, by the newest of its events that says so. */
async function progressOf(job, signal) {
  if (hasEnded(job.status) || job.status === "queued" || job.status === "validating_files") return null;
  const { data } = await get(`/v1/fine_tuning/jobs/${job.id}/events?limit=20`, { signal });
  const told = data.find((event) => event.data?.total_steps);
  return told ? { step: told.data.step, total: told.data.total_steps } : null;
}

function keepFresh(shown, main) {
  const timer = setInterval(async () => {
    if (document.hidden) return;
    try {
      await load(shown);
    } catch {
      return; // the next look may find the server again
    }
    const none = main.querySelector("#no-jobs");
    if (none && shown.known.size) none.replaceWith(shown.list);
  }, SECONDS * 1000);
  shown.signal.addEventListener("abort", () => clearInterval(timer));
}
