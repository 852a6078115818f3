// A file for a job: one that is dropped or chosen, and uploaded at once, or one that is here already.

import { ask, upload } from "./api.js";
import { dropzone } from "./dropzone.js";
import { el, field, select } from "./dom.js";
import { bytes, when } from "./format.js";
import { say, showError } from "./say.js";

const LARGEST_READ = 100_000_000; // bytes of a file here that are fetched to be looked at

export class FilePicker {
  /**
   * `id`: of the file, once it is here; `source()` → its bytes as a Blob, where they can be looked at.
   * `changed(picker)` is called when there is another file, and again when it has arrived.
   */
  constructor(name, files, { signal, changed, optional = false }) {
    Object.assign(this, { signal, changed, files, id: null, source: null, arriving: null });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": `Upload of the ${name.toLowerCase()}`, hidden: true });
    this.told = el("p.hint");
    this.failed = el("div");
    const none = ["", optional ? "none" : "Choose one …"];
    this.select = select([none, ...files.map((file) => [file.id, `${file.filename} (${bytes(file.bytes)}, ${when(file.created_at)})`])], "", () => this.choose(this.select.value));
    this.node = el("fieldset", el("legend", name), el("div.form",
      dropzone("Upload a file", (file) => this.take(file)), this.bar, this.failed, this.told,
      files.length > 0 || optional ? field("Or one that is here already", this.select) : null));
  }

  /** A file that is here. Small ones are fetched to be looked at. */
  choose(id) {
    const file = this.files.find((one) => one.id === id);
    this.select.value = id;
    this.stop();
    this.id = id || null;
    this.source = file && file.bytes <= LARGEST_READ ? kept(file, this.signal) : null;
    this.told.textContent = file ? `${file.filename}, ${file.id}` : "";
    this.changed(this);
  }

  async take(file) {
    this.stop();
    this.id = null;
    this.source = async () => file;
    this.select.value = "";
    this.told.textContent = `${file.name}, ${bytes(file.size)}`;
    this.stopping = new AbortController();
    this.signal.addEventListener("abort", () => this.stop(), { once: true });
    this.arriving = this.send(file, this.stopping.signal);
    this.changed(this);
    await this.arriving;
  }

  async send(file, signal) {
    this.bar.hidden = false;
    try {
      const sent = await upload(file, (share) => (this.bar.value = share), signal);
      this.id = sent.id;
      this.told.textContent = `${sent.filename}, ${bytes(sent.bytes)}, is uploaded as ${sent.id}.`;
      say(`${sent.filename} is uploaded.`);
      this.changed(this);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.source = null;
      showError(this.failed, error, "The file was not uploaded");
      this.changed(this);
    } finally {
      if (!signal.aborted) this.bar.hidden = true;
    }
  }

  stop() {
    this.stopping?.abort();
    this.bar.hidden = true;
    this.arriving = null;
    showError(this.failed, null);
  }
}

/** The bytes of a file of the server, which come once, and are kept for a second look with another method. */
function kept(file, signal) {
  let body = null;
  return () => (body ??= ask("GET", `/v1/files/${encodeURIComponent(file.id)}/content`, undefined, signal).then((response) => response.blob()));
}
