// A stream of bytes as lines of text.

/** The lines of a ReadableStream, without their ends; the last one also where no end follows it. */
export async function* lines(stream) {
  let rest = "";
  for await (const text of pieces(stream.pipeThrough(new TextDecoderStream()))) {
    const found = (rest + text).split("\n");
    rest = found.pop();
    for (const line of found) yield line.endsWith("\r") ? line.slice(0, -1) : line;
  }
  if (rest) yield rest;
}

async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    await reader.cancel().catch(() => {});
  }
}
