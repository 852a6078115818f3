// One job: where it stands, its curves and events as they come, its checkpoints, and what it made.

import { all, ask, get, post } from "./api.js";
import { Curves } from "./curves.js";
import { sure } from "./dialog.js";
import { button, el } from "./dom.js";
import { Events } from "./events.js";
import { follow } from "./follow.js";
import { count, counted, duration, figure, when } from "./format.js";
import { nameOf } from "./hyperparameters.js";
import { reportSection } from "./report.js";
import { copier, decoded, save } from "./saving.js";
import { say, showError } from "./say.js";
import { actions, badge, hasEnded, statusWord, titleOf } from "./status.js";

const SECONDS = 2;

export async function show(main, { id, signal }) {
  const view = new View(await get(path(id), { signal }), signal);
  main.append(view.node);
  view.watch();
}

const path = (id, rest = "") => `/v1/fine_tuning/jobs/${encodeURIComponent(id)}${rest}`;

class View {
  constructor(job, signal) {
    Object.assign(this, { job, signal, step: null });
    this.head = el("div");
    this.failed = el("div");
    this.connection = el("p.notice", { hidden: true });
    this.curves = new Curves();
    this.events = new Events();
    this.made = el("div");
    this.checkpoints = el("section", { hidden: true }, el("h2", "Checkpoints"),
      el("p.note", "Each is a model of its own, and answers by its name."), el("details", el("summary"), el("ul.rows")));
    this.waiting = el("p.empty", "Curves appear with the first step.");
    this.node = el("div", this.head, this.failed, this.connection, this.made,
      el("section", el("h2", "Curves"), this.waiting, this.curves.node, this.tableOfCurves()),
      this.checkpoints, this.events.node, settings(job, signal));
    this.draw();
  }

  tableOfCurves() {
    const place = el("div");
    const opened = (event) => event.target.open && place.replaceChildren(this.curves.values());
    this.figures = el("details", { ontoggle: opened, hidden: true }, el("summary", "The figures as a table"), place);
    return this.figures;
  }

  /** Everything that follows from the job itself. Buttons stay the same where they do, and so does the focus. */
  draw() {
    const { job } = this;
    const title = titleOf(job);
    if (!this.title) {
      this.title = el("h1", { tabindex: "-1" });
      this.facts = el("ul.facts");
      this.buttons = el("div.buttons");
      this.progress = el("div");
      const begin = el("div", el("p.kicker", el("a", { href: "#/jobs" }, "Jobs"), " / job"), this.title, this.facts);
      this.head.append(el("div.headline", begin, this.buttons), this.progress);
    }
    this.title.textContent = title;
    this.facts.replaceChildren(...facts(job).map((fact) => el("li", fact)));
    this.drawButtons();
    this.drawProgress();
    this.drawEnd();
  }

  drawButtons() {
    const wanted = actions(this.job.status);
    const key = wanted.map(([action]) => action).join();
    if (this.buttons.dataset.key === key) return;
    this.buttons.dataset.key = key;
    const held = this.buttons.contains(document.activeElement);
    const failed = (error) => showError(this.failed, error);
    const one = ([action, name]) => button(name, () => this.act(action), { kind: action === "cancel" ? "danger" : "", failed });
    const again = hasEnded(this.job.status) && el("a.button", { href: `#/new?from=${this.job.id}` }, "New job with the same settings");
    this.buttons.replaceChildren(...wanted.map(one), ...(again ? [again] : []));
    if (held) (this.buttons.querySelector("button, a") ?? this.title).focus();
  }

  async act(action) {
    const cancel = action === "cancel";
    if (cancel && !(await sure("Cancel this job?", "It stops within one step. Its checkpoints stay; what it has learned since the last one is lost.", "Cancel the job"))) return;
    showError(this.failed, null);
    await post(path(this.job.id, `/${action}`), undefined, { signal: this.signal });
    await this.look();
  }

  drawProgress() {
    const { job, step } = this;
    if (!step || ["succeeded", "failed", "cancelled"].includes(job.status)) {
      this.progress.replaceChildren();
      return;
    }
    const left = job.status === "running" && job.estimated_finish ? job.estimated_finish - Date.now() / 1000 : 0;
    const text = `Step ${count(step.step)} of ${count(step.total_steps)}${left > 1 ? `, ${duration(left)} left` : ""}`;
    this.progress.replaceChildren(el("progress", { max: step.total_steps, value: step.step, "aria-label": "Progress" }), el("p.hint", text));
  }

  drawEnd() {
    const { job } = this;
    if (this.shown === job.status) return;
    this.shown = job.status;
    const parts = { failed: () => [failure(job)], succeeded: () => [success(job, this.signal), reportSection(job.id, this.signal)] };
    this.made.replaceChildren(...(parts[job.status]?.() ?? []));
    if (hasEnded(job.status) && this.waiting.isConnected) this.waiting.textContent = "This job told of no step.";
  }

  /** Ask for the job again. */
  async look() {
    const job = await get(path(this.job.id), { signal: this.signal });
    if (job.status !== this.job.status) say(`The job: ${statusWord(job.status)}`);
    this.job = job;
    this.draw();
  }

  watch() {
    const heard = (event) => this.hear(event);
    follow(this.job.id, heard, (seconds) => this.tellConnection(seconds), this.signal)
      .then(() => this.signal.aborted || this.atEnd())
      .catch((error) => showError(this.failed, error, "The events could not be followed"));
    this.drawCheckpoints();
    const timer = setInterval(() => {
      if (hasEnded(this.job.status)) clearInterval(timer);
      else if (!document.hidden) Promise.all([this.look(), this.drawCheckpoints()]).catch(() => {}); // `follow` says that nobody answers
    }, SECONDS * 1000);
    this.signal.addEventListener("abort", () => clearInterval(timer));
  }

  async atEnd() {
    await Promise.all([this.look(), this.drawCheckpoints()]);
  }

  hear(event) {
    this.events.add(event);
    if (!Number.isFinite(event.data?.step)) return;
    this.waiting.remove();
    this.figures.hidden = false;
    this.curves.add(event.data);
    if (event.data.total_steps) this.step = event.data;
    this.drawProgress();
  }

  tellConnection(seconds) {
    this.connection.hidden = seconds === null;
    if (seconds === 1) say("The connection to the server was lost. Trying again.");
    this.connection.textContent = `The connection was lost. Trying again in ${seconds} s; the job goes on meanwhile.`;
  }

  async drawCheckpoints() {
    const found = await all(path(this.job.id, "/checkpoints?limit=100"), { signal: this.signal, most: 200 });
    if (found.length === this.saved) return;
    this.saved = found.length;
    this.checkpoints.hidden = !found.length;
    this.checkpoints.querySelector("summary").textContent = counted(found.length, "checkpoint");
    this.checkpoints.querySelector("ul").replaceChildren(...found.map(checkpoint));
  }
}

function facts(job) {
  const took = job.finished_at && job.finished_at - job.created_at;
  return [
    badge(job.status), job.method.type, `from ${job.model}`, when(job.created_at),
    took ? `done after ${duration(took)}` : null, job.trained_tokens ? `${count(job.trained_tokens)} tokens trained` : null,
  ].filter(Boolean);
}

const ADVICE = {
  invalid_n_examples: "Add examples to the file, upload it again, and start a new job with it.",
  invalid_training_file: "Mend the lines that are named, upload the file again, and start a new job with it.",
  invalid_validation_file: "Mend the lines of the validation file that are named, upload it again, and start a new job with it.",
  training_failed: "Change what the message names, and start a new job. A lower learning rate helps where the loss was not finite.",
  server_error: "This was not your doing. Whoever runs the service finds the reason in its log; starting the job again may work.",
};

function failure(job) {
  const { code, message, param } = job.error ?? { message: "No reason was given." };
  return el("div.notice.worse",
    el("h2", "Why it failed"), el("p", message),
    el("p", el("b", "What to do: "), ADVICE[code] ?? "Change what the message names, and start a new job.", " ",
      el("a", { href: `#/new?from=${job.id}` }, "Start again from these settings")),
    el("p.hint", [code, param].filter(Boolean).join(" · ")));
}

function success(job, signal) {
  const failed = el("div");
  const results = job.result_files.map((id) =>
    button("Save the results (CSV)", () => saveResults(job, id, signal), { failed: (error) => showError(failed, error) }));
  return el("section",
    el("h2", "Your model"),
    el("p", el("code", job.fine_tuned_model), " ", copier(job.fine_tuned_model)),
    el("div.buttons", el("a.button.primary", { href: tryIt(job.fine_tuned_model) }, "Try it beside its base"), results),
    failed);
}

const tryIt = (model) => `#/playground?model=${encodeURIComponent(model)}`;

async function saveResults(job, id, signal) {
  const text = await (await ask("GET", `/v1/files/${encodeURIComponent(id)}/content`, undefined, signal)).text();
  save(`${job.id}.csv`, decoded(text), "text/csv");
}

function checkpoint(one) {
  const told = Object.entries(one.metrics).filter(([name]) => name !== "step" && !name.startsWith("full_"));
  return el("li.row",
    el("span.title", `Step ${count(one.step_number)}`),
    el("div.about", told.map(([name, value]) => el("span", `${name.replaceAll("_", " ")} ${figure(value)}`)), el("span.mono", one.fine_tuned_model_checkpoint)),
    el("div.aside", el("div.buttons", copier(one.fine_tuned_model_checkpoint, "Copy name"),
      el("a.button", { href: tryIt(one.fine_tuned_model_checkpoint), "aria-label": `Try step ${one.step_number}` }, "Try it"))));
}

function settings(job, signal) {
  const own = job.method[job.method.type] ?? {};
  const chosen = Object.entries(own.hyperparameters ?? {}).map(([name, value]) => [nameOf(name), value]);
  const pairs = [["Training file", file(job.training_file, signal)], ["Validation file", file(job.validation_file, signal)], ["Seed", job.seed], ...chosen];
  const line = ([name, value]) => el("tr", el("th", { scope: "row" }, name), el("td", value instanceof Node ? value : String(value)));
  return el("section", el("h2", "Settings"),
    el("table.pairs", el("tbody", pairs.map(line))),
    own.grader && [el("h3", "Grader"), el("pre", JSON.stringify(own.grader, null, 2))],
    el("p.hint", el("span.mono", job.id)));
}

/** A file by its name, where it is still there and the key may see it; by its id in any case. */
function file(id, signal) {
  if (!id) return "none";
  const place = el("span", el("span.mono", id));
  get(`/v1/files/${encodeURIComponent(id)}`, { signal }).then((one) => place.prepend(`${one.filename} `)).catch(() => {});
  return place;
}
