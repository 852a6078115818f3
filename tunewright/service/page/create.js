// A new job: file, base, method and settings, with the check of the data before it starts.

import { all, get, post } from "./api.js";
import { found } from "./checked.js";
import { busy, choices, chosenOf, el, field } from "./dom.js";
import { FilePicker } from "./filepicker.js";
import { graderEditor } from "./graders.js";
import { hyperparameters } from "./hyperparameters.js";
import { listed, modelPicker } from "./modelpicker.js";
import { check } from "./rows.js";
import { say, showError } from "./say.js";
import { askServer } from "./servercheck.js";

const METHODS = [
  ["supervised", "From answers (supervised)"],
  ["dpo", "From better and worse answers (dpo)"],
  ["reinforcement", "From a grader (reinforcement)"],
];
const FORMS = {
  supervised: '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
  dpo: '{"input": {"messages": […]}, "preferred_output": [{"role": "assistant", "content": "…"}], "non_preferred_output": […]}',
  reinforcement: '{"messages": [{"role": "user", "content": "What is 2 + 2?"}], "answer": "4"}',
};

export async function show(main, { query, signal }) {
  const earlier = query.get("from") ? await get(`/v1/fine_tuning/jobs/${encodeURIComponent(query.get("from"))}`, { signal }) : null;
  const [models, files] = await Promise.all([listed(signal), all("/v1/files?purpose=fine-tune&limit=1000", { signal })]);
  const form = new Form(models, files, earlier, query, signal);
  main.append(el("h1", { tabindex: "-1" }, "New job"), form.node);
  form.begin(query.get("file") ?? earlier?.training_file, earlier?.validation_file);
}

class Form {
  constructor(models, files, earlier, query, signal) {
    Object.assign(this, { signal, earlier });
    const own = earlier?.method[earlier.method.type] ?? {};
    this.given = own.hyperparameters ?? {};
    this.givenGrader = own.grader;
    const changed = () => this.look();
    this.training = new FilePicker("Examples to learn from", files, { signal, changed });
    this.validation = new FilePicker("Examples to test on", files, { signal, changed, optional: true });
    this.model = modelPicker(models, { name: "Base", hint: "What the job begins from.", wanted: query.get("model") ?? earlier?.model, changed });
    this.method = choices("Method", METHODS, earlier?.method.type ?? "supervised", () => this.drawMethod());
    this.suffix = el("input", { type: "text", maxlength: "64", autocomplete: "off", value: earlier?.user_provided_suffix ?? "" });
    this.seed = el("input", { type: "text", inputmode: "numeric", autocomplete: "off", value: earlier?.seed || "" });
    this.form = el("p.hint");
    this.grader = el("div");
    this.options = el("div");
    this.checked = el("section", { "aria-live": "polite", "aria-label": "Check of the data" });
    this.failed = el("div");
    this.start = el("button.primary", { type: "submit" }, "Start the job");
    this.node = this.layout();
    this.drawMethod();
  }

  layout() {
    const submit = (event) => {
      event.preventDefault();
      this.clear();
      busy(this.start, () => this.create(), (error) => this.refuse(error));
    };
    const more = el("details", el("summary", "Hyperparameters, seed and validation file"),
      el("p.note", "“auto” is decided by the run, from its rows."), el("div.form", this.options,
        el("div.pair.small", field("Seed", this.seed, "The same seed, the same model.")), this.validation.node));
    this.more = more;
    return el("form.form", { onsubmit: submit, novalidate: true },
      el("div.pair", this.model.nodes, field("Suffix", this.suffix, "A word of the new model’s name.")),
      this.method, el("div", this.training.node, this.form), this.checked, this.grader, more, this.failed, el("div.buttons", this.start));
  }

  /** Files that the address or an earlier job names. */
  begin(training, validation) {
    if (training) this.training.choose(training);
    if (validation) this.validation.choose(validation);
  }

  get kind() {
    return chosenOf(this.method);
  }

  drawMethod() {
    this.form.replaceChildren("One row a line: ", el("code", FORMS[this.kind]));
    this.hyper = hyperparameters(this.kind, this.given);
    this.options.replaceChildren(this.hyper.node);
    this.editor = this.kind === "reinforcement" ? graderEditor(this.givenGrader, this.signal, () => this.look()) : null;
    this.grader.replaceChildren(...(this.editor ? [this.editor.node] : []));
    this.look();
  }

  /** Check the file: here at once, and by the server when it has arrived. An older check that still goes on is over. */
  async look() {
    this.looking?.abort();
    this.looking = new AbortController();
    this.isSound = true;
    this.clear();
    const { signal } = this.looking;
    const { training } = this;
    if (!training.source && !training.id) return this.checked.replaceChildren();
    const here = el("div", el("p", "Reading …")), there = el("div");
    this.checked.replaceChildren(el("h2", "Check of the data"), here, there);
    try {
      here.replaceChildren(...(await this.readHere(signal)));
      if (training.id) this.isSound = await askServer(this.body(false), there, signal);
      else there.replaceChildren(el("p.hint", "The server checks it too when it has arrived."));
    } catch (error) {
      if (!signal.aborted && error.name !== "AbortError") showError(there, error, "The check found this");
    }
  }

  /** What the file itself shows. A file that has been read for this method is not read again. */
  async readHere(signal) {
    const { source } = this.training, method = this.kind;
    if (!source) return [];
    if (this.read?.source !== source || this.read.method !== method) {
      this.read = null;
      const nodes = found(await check(await source(), method, signal));
      signal.throwIfAborted();
      this.read = { source, method, nodes };
    }
    return this.read.nodes;
  }

  /** What is asked for. Raises { message, control } where a field is wrong. */
  body(isWhole = true) {
    const settings = isWhole ? { hyperparameters: this.hyper.read() } : {};
    if (this.editor) settings.grader = isWhole ? this.editor.read() : this.graderOrNone();
    const body = { model: this.model.value, training_file: this.training.id, method: { type: this.kind, [this.kind]: settings } };
    if (this.validation.id) body.validation_file = this.validation.id;
    if (this.suffix.value.trim()) body.suffix = this.suffix.value.trim();
    if (this.seed.value.trim()) body.seed = seedOf(this.seed);
    return body;
  }

  graderOrNone() {
    try {
      return this.editor.read();
    } catch {
      return undefined;
    }
  }

  async create() {
    await Promise.all([this.training.arriving, this.validation.arriving]);
    if (!this.training.id) throw { message: "Choose a file with examples.", control: this.training.node.querySelector("input") };
    if (!this.isSound) throw { message: "Mend what the check names first.", control: this.training.node.querySelector("input") };
    const job = await post("/v1/fine_tuning/jobs", this.body(), { signal: this.signal });
    say("The job is created.");
    location.hash = `#/jobs/${job.id}`;
  }

  clear() {
    showError(this.failed, null);
    for (const control of this.node.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  }

  /** Show an error, and go to the field that it is about. */
  refuse(error) {
    showError(this.failed, error, "The job was not created");
    const control = error.control ?? this.controlOf(error.param ?? "");
    if (!control) return;
    if (this.more.contains(control)) this.more.open = true;
    control.setAttribute("aria-invalid", "true");
    control.focus();
  }

  controlOf(param) {
    const plain = { model: this.model.control, suffix: this.suffix, seed: this.seed, training_file: this.training.select, validation_file: this.validation.select };
    const last = param.split(".").at(-1);
    return plain[param] ?? this.hyper.inputs.get(last)?.input ?? (param.includes("grader") ? this.editor?.text : null);
  }
}

function seedOf(input) {
  const number = Number(input.value);
  if (!Number.isInteger(number) || number < 0) throw { message: "Seed: it is a whole number from 0 on.", control: input };
  return number;
}
