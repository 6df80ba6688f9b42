// The page at `/`: collects pictures, asks POST /predict for each, and shows its answer.

const TOP = 5; // classes shown of each picture
const AT_ONCE = 2; // requests at a time
const PATIENCE = 60_000; // milliseconds: 30 s to arrive, 10 s in the queue, and the work
const SURE = 0.9; // probability from which a class is named without "probably"; as in forms.py
const LEAST = 0.0005; // probability from which a class is shown: 0.1 %, rounded; as in classifier.py
const BUSY = { 429: "Too many requests.", 503: "The server is busy." }; // as in forms.py
const NAMED = 15; // classes that are named of a model; as in pages.py
// In static/examples: enlarged CIFAR-10 images, and a drawing of another thing.
const EXAMPLES = ["airplane", "automobile", "cat", "frog", "ship"];
const OTHER = "something-else";
// A model of photos may know a class, and not so small an image: those that it knows.
const KNOWN = { "airplane-or-automobile": ["automobile"] };

const $ = (id) => document.getElementById(id);
const pictures = new Map(); // <li>, in their order → {file, url, answer, stop}
const waiting = []; // <li> whose turn is to come
let viewed; // whose picture is enlarged
let workers = 0;
let told = ""; // what the status last said of the pictures
let models = [];
let modelsMissing = false; // whether they could not be loaded: the next attempt loads them again

const fromTemplate = (id) => $(id).content.firstElementChild.cloneNode(true);
const failed = (card) => pictures.get(card).answer?.success === false;
const counted = (number, noun = "picture") => `${number} ${noun}${number === 1 ? "" : "s"}`;

// No probability is quite 0 or 1. A unit stays on the line of its number: U+00A0.
function percent(share) {
  if (share < LEAST) return "under 0.1\u00a0%";
  return share < 1 - LEAST ? `${(100 * share).toFixed(1)}\u00a0%` : "over 99.9\u00a0%";
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)}\u00a0ms` : `${(milliseconds / 1000).toFixed(1)}\u00a0s`;
}

// Pictures come and go.

function add(files) {
  const added = [...files].map(cardOf);
  if (!added.length) return;
  $("cards").append(...added);
  classify(added);
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  added.at(-1).scrollIntoView({ block: "nearest", behavior });
}

function cardOf(file) {
  const card = fromTemplate("card");
  const url = URL.createObjectURL(file);
  pictures.set(card, { file, url });
  const image = card.querySelector("img");
  const enlarge = card.querySelector(".picture");
  image.onerror = () => {
    image.onerror = null; // what the browser cannot show, the server may still read
    image.src = "/static/icon.svg";
    enlarge.disabled = true;
  };
  image.src = url;
  enlarge.setAttribute("aria-label", `Enlarge ${file.name}`);
  enlarge.onclick = () => view(card);
  card.querySelector(".name").textContent = file.name;
  const remove = card.querySelector(".remove");
  remove.setAttribute("aria-label", `Remove ${file.name}`);
  remove.onclick = () => removeCard(card);
  return card;
}

function removeCard(card) {
  const neighbour = card.nextElementSibling ?? card.previousElementSibling;
  forget(card);
  (neighbour?.querySelector(".remove") ?? $("files")).focus();
  refresh();
}

function forget(card) {
  const { url, stop } = pictures.get(card);
  stop?.abort();
  URL.revokeObjectURL(url);
  pictures.delete(card);
  card.remove();
}

// What depends on which pictures there are, and on their answers.
function refresh() {
  const pending = [...pictures.values()].some(({ answer }) => !answer);
  $("actions").hidden = !pictures.size;
  $("csv").disabled = $("json").disabled = pending;
  $("curl").textContent = curlLine();
  const said = pictures.size ? state() : [];
  const text = said.map((each) => each.textContent ?? each).join("");
  if (text === told) return; // or it would replace another message
  told = text;
  if ($("status").textContent !== text) $("status").replaceChildren(...said); // or it would be read out again
}

// Let the status say again how far the pictures are, in place of another message.
function endMessage() {
  told = undefined;
  refresh();
}

// How far it is; of one picture a screen reader is told the answer, which others see in its card.
function state() {
  const all = [...pictures.values()];
  const wrong = [...pictures.keys()].filter(failed).length;
  if (!all.every(({ answer }) => answer)) return [`Classifying ${counted(all.length)}…`];
  if (wrong && wrong < all.length) return [`${wrong} of ${counted(all.length)} could not be classified`];
  const spoken = document.createElement("span");
  spoken.className = "hidden";
  spoken.textContent = all.length === 1 ? `: ${headline(all[0].answer)}` : "";
  return [`${counted(all.length)} ${wrong ? "could not be classified" : "classified"}`, spoken];
}

// Ask the server.

function predictUrl() {
  const query = new URLSearchParams({ top: TOP });
  if (models.length > 1) query.set("model", $("model").value);
  return `${location.origin}/predict?${query}`;
}

// With the key if there is one; where the server wants another, show the field for it.
async function request(url, options = {}) {
  const key = $("key").value;
  if (/[^\x21-\x7e]/.test(key)) return askForKey("This API key is not valid."); // no header may hold it
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  const signals = [AbortSignal.timeout(PATIENCE), ...(options.signal ? [options.signal] : [])];
  const signal = AbortSignal.any?.(signals) ?? options.signal; // browsers before 2024 wait without end
  const response = await fetch(url, { ...options, headers, signal }).catch(({ name }) => {
    const late = name === "TimeoutError";
    throw new Error(late ? "The server has not answered in a minute." : "The server cannot be reached. Is it running?");
  });
  if (response.ok) return response;
  if (response.status !== 401) return jsonOf(response); // which throws
  return askForKey(key ? "This API key is not valid." : "Enter the API key of this server.");
}

function askForKey(message) {
  $("key-row").hidden = false;
  throw new Error(message);
}

// A form with the file; throws an Error that says why there can be none.
async function formOf(file) {
  const most = Number($("form").dataset.maxBody);
  if (file.size >= most) throw new Error(`The file is too large. Send at most ${Math.floor(most / 2 ** 20)} MiB.`);
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Error("This cannot be read: it is a folder, or was changed or moved after it was chosen.");
  });
  if (!file.size) throw new Error("The file is empty.");
  const body = new FormData();
  body.append("image", file, file.name);
  return body;
}

// The JSON of a response, which must have the field; throws an Error with the API's message. A response of a
// proxy has neither.
async function jsonOf(response, field) {
  const answer = await response.json().catch(() => null);
  if (response.ok && answer?.success && answer[field]) return answer;
  const { code, message = `The server's answer cannot be read (status ${response.status}).` } = answer?.error ?? {};
  const seconds = Number(response.headers.get("Retry-After"));
  const busy = code && seconds && BUSY[response.status];
  throw Object.assign(new Error(busy ? `${busy} Try again in ${counted(seconds, "second")}.` : message), { code });
}

// Each of the cards gets an answer, AT_ONCE at a time; what it said before, or was about to, is void.
async function classify(cards) {
  for (const card of cards) {
    const picture = pictures.get(card);
    picture.stop?.abort();
    picture.answer = undefined;
    draw(card);
    if (!waiting.includes(card)) waiting.push(card);
  }
  refresh();
  if (modelsMissing) await loadModels();
  while (workers < AT_ONCE && waiting.length) work();
}

async function work() {
  workers += 1;
  try {
    while (waiting.length) await ask(waiting.shift());
  } finally {
    workers -= 1;
  }
}

async function ask(card) {
  const picture = pictures.get(card);
  if (!picture) return; // removed meanwhile
  const stop = new AbortController();
  picture.stop = stop;
  const key = $("key").value;
  const began = performance.now();
  let answer;
  try {
    const body = await formOf(picture.file);
    const response = await request(predictUrl(), { method: "POST", body, signal: stop.signal });
    answer = await jsonOf(response, "predictions");
  } catch ({ code, message }) {
    answer = { success: false, error: { code, message } };
    if (code === "unknown_model") modelsMissing = true; // the server has others since
  }
  if (stop.signal.aborted) return;
  if (!answer.success && $("key").value !== key) {
    waiting.push(card); // for the key that was entered meanwhile
    return;
  }
  picture.answer = answer;
  picture.milliseconds = performance.now() - began;
  draw(card);
  if ($("viewer").open && viewed === card) describeView(card);
  refresh();
}

// Show what it says; forms.py says the same in its pages.

function headline({ success, error, predictions, uncertain, none_of_these }) {
  if (!success) return error.message;
  if (none_of_these) return "None of these";
  const [best, next] = predictions;
  if (uncertain) return `Not sure: ${best.label} or ${next.label}`;
  return `${best.probability < SURE ? "Probably " : ""}${best.label}, ${percent(best.probability)}`;
}

function draw(card) {
  const { answer, milliseconds } = pictures.get(card);
  card.classList.toggle("failed", answer?.success === false);
  card.classList.toggle("unsure", answer?.uncertain === true);
  card.classList.toggle("likely", answer?.uncertain === false && answer.predictions[0].probability < SURE);
  card.classList.toggle("none", answer?.none_of_these === true);
  card.querySelector(".verdict").textContent = answer ? headline(answer) : "…";
  card.querySelector(".guesses").hidden = !answer?.success;
  card.querySelector(".took").textContent = "";
  if (!answer?.success) return;
  const shown = answer.predictions.filter(({ probability }, rank) => !rank || probability >= LEAST);
  card.querySelector(".guesses").open = !answer.none_of_these;
  card.querySelector("summary").hidden = !answer.none_of_these;
  card.querySelector(".bars").replaceChildren(...shown.map(barOf));
  card.querySelector(".others").textContent = othersThan(shown, answer.model.name);
  card.querySelector(".took").textContent = `${answer.model.name}, ${duration(milliseconds)}`;
}

function barOf({ label, probability }) {
  const bar = fromTemplate("bar");
  bar.querySelector(".label").textContent = label;
  const progress = bar.querySelector("progress");
  progress.value = probability;
  bar.querySelector(".percent").textContent = percent(probability);
  return bar;
}

// The classes that have no bar, and their probability together.
function othersThan(shown, name) {
  const known = models.find((model) => model.name === name)?.labels.length ?? shown.length;
  const others = known - shown.length;
  if (others < 1) return "";
  const rest = 1 - shown.reduce((sum, { probability }) => sum + probability, 0);
  return `${others === 1 ? "the other" : `the other ${others}`}: ${percent(Math.max(rest, 0))}`;
}

function view(card) {
  viewed = card;
  const { file, url } = pictures.get(card);
  $("look").onclick = () => look(card);
  $("look").setAttribute("aria-pressed", false);
  $("shade").hidden = true;
  const viewer = $("viewer");
  const image = viewer.querySelector("img");
  image.onload = () => image.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  image.src = url;
  image.alt = file.name;
  viewer.querySelector(".name").textContent = file.name;
  describeView(card);
  viewer.showModal();
}

// The answer below the enlarged picture, and whether its model explains it.
function describeView(card) {
  const { answer } = pictures.get(card);
  $("look").hidden = !models.find(({ name }) => name === answer?.model?.name)?.explains;
  $("viewer-answer").textContent = answer?.success ? headline(answer) : "";
}

// Darken what says little for the best class, or show the picture as it is again.
async function look(card) {
  const button = $("look");
  const wanted = button.getAttribute("aria-pressed") === "false";
  button.setAttribute("aria-pressed", wanted);
  $("shade").hidden = true;
  if (!wanted) return;
  try {
    const body = await formOf(pictures.get(card).file);
    const response = await request(`${predictUrl()}&explain=true`, { method: "POST", body });
    const answer = await jsonOf(response, "explanation");
    if (viewed !== card) return;
    drawShade(answer.explanation.grid);
    describeView(card); // in place of what went wrong before
    $("shade").hidden = button.getAttribute("aria-pressed") === "false";
  } catch (error) {
    if (viewed !== card) return;
    button.setAttribute("aria-pressed", false);
    $("viewer-answer").textContent = error.message;
  }
}

function drawShade(grid) {
  const canvas = $("shade");
  [canvas.width, canvas.height] = [grid[0].length, grid.length];
  const dark = grid.flat().flatMap((value) => [0, 0, 0, 215 * (1 - value)]);
  const pixels = new ImageData(Uint8ClampedArray.from(dark), canvas.width);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// The answers as files.

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); // milliseconds, after which it has begun
}

// As the API's `results`, each with its model.
function results() {
  return [...pictures.values()].map(({ file, answer }) => ({ filename: file.name, ...answer }));
}

// The columns of `python -m rest_api.predict --format csv --top 5`, and one more.
function csv() {
  const ranks = Array.from({ length: TOP }, (_, rank) => rank);
  const guesses = ranks.flatMap((rank) => [`label_${rank + 1}`, `probability_${rank + 1}`]);
  const head = ["file", "uncertain", "none_of_these", ...guesses, "model", "version", "error"];
  const rows = results().map((result) => [
    result.filename,
    result.uncertain,
    result.none_of_these,
    ...ranks.flatMap((rank) => {
      const { label, probability } = result.predictions?.[rank] ?? {};
      return [label, probability];
    }),
    result.model?.name,
    result.model?.version,
    result.error?.message,
  ]);
  return [head, ...rows].map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}

// A spreadsheet would take a text that begins like a formula for one.
function cell(given = "") {
  const value = /^[=+\-@\t\r]/.test(given) ? `'${given}` : given;
  return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

// The same from a terminal.

function curlLine() {
  const most = Number($("form").dataset.maxFiles); // of a request
  const names = [...pictures.values()].slice(0, most).map(({ file }) => file.name);
  const files = (names.length ? names : ["photo.jpg"]).map((name) => `-F ${quote(`image=@${part(name)}`)}`);
  const key = $("key").value ? ' -H "X-API-Key: $API_KEY"' : "";
  return `curl -X POST${key} ${files.join(" ")} ${quote(predictUrl())}`;
}

// A file's name as curl's -F reads it.
function part(name) {
  return /[,;"\\]/.test(name) ? `"${name.replaceAll(/["\\]/g, "\\$&")}"` : name;
}

function quote(text) {
  return /^[\w@=.:/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// Put an element's text on the clipboard, which browsers give to pages of https and localhost alone;
// elsewhere by its selection, which stays for the person where this fails, too.
async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {} // there is none, or it may not be used
  getSelection().selectAllChildren(element);
  return document.execCommand("copy");
}

// Models.

async function loadModels() {
  if (modelsMissing) endMessage(); // which says why
  modelsMissing = false;
  const key = $("key").value;
  try {
    ({ models } = await jsonOf(await request("/models"), "models"));
  } catch (error) {
    modelsMissing = true;
    if ($("key").value !== key) return; // they are loaded with the other one
    $("status").textContent = error.message;
    return;
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  if (models.some(({ name }) => name === chosen)) $("model").value = chosen;
  $("model-row").hidden = models.length < 2;
  describe();
  $("curl").textContent = curlLine(); // which names the model
  for (const [card, { answer }] of pictures) if (answer) draw(card); // whose other classes are known now
  if ($("viewer").open) describeView(viewed);
  const wrong = [...pictures.keys()].filter(failed); // for want of a key or of the server
  if (wrong.length) classify(wrong);
}

function describe() {
  const model = models.find(({ name }) => name === $("model").value);
  $("about").textContent = `It knows ${listed(model.labels)}, and nothing else.`;
  $("more").replaceChildren(model.card ? cardLink(model.name) : figures(model));
  $("more").hidden = false;
  const examples = examplesFor(model);
  $("examples").hidden = !examples.length;
  document.querySelector(".examples").replaceChildren(...examples.map(exampleOf));
}

function examplesFor({ name, labels, ood }) {
  const known = KNOWN[name] ?? EXAMPLES.filter((example) => labels.includes(example));
  return ood ? [...known, OTHER] : known;
}

function listed(labels) {
  const more = labels.length - NAMED;
  return labels.slice(0, NAMED).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

// What GET /models says of a model that has no card.
function figures({ version, engine, accuracy }) {
  const right = accuracy[engine];
  const of = `${accuracy.measured_on}, ${accuracy.images?.toLocaleString("en")} images`;
  return right ? `Right on ${percent(right)} of ${of}. Version ${version}.` : `Version ${version}.`;
}

function cardLink(name) {
  const link = document.createElement("a");
  link.href = `/models/${encodeURIComponent(name)}/card`;
  link.textContent = "About this model";
  link.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault(); // a link sends no key, and leaves the pictures
    showModelCard(link.href);
  };
  return link;
}

async function showModelCard(url) {
  try {
    const page = await (await request(url, { headers: { Accept: "text/html" } })).text();
    const content = new DOMParser().parseFromString(page, "text/html").querySelector("main");
    for (const link of content.querySelectorAll("a")) link.target = "_blank"; // or the pictures would be lost
    $("model-card").querySelector(".prose").replaceChildren(...content.childNodes);
    $("model-card").showModal();
    $("model-card").scrollTop = 0;
  } catch (error) {
    $("status").textContent = error.message;
  }
}

function exampleOf(name) {
  const button = document.createElement("button");
  const image = new Image(56, 56);
  const title = name.replaceAll("-", " ");
  image.src = `/static/examples/${name}.jpg`;
  image.alt = `Example: ${title}`;
  button.type = "button";
  button.append(image);
  button.onclick = async () => {
    try {
      const picture = await (await request(image.src)).blob();
      add([new File([picture], `${name}.jpg`, { type: picture.type })]);
    } catch (error) {
      $("status").textContent = error.message;
    }
  };
  return button;
}

// The camera: on a phone its own application, by the file input; on a computer a preview.

async function openCamera() {
  const video = $("shutter").querySelector("video");
  if (cameraOpens) return; // a second stream would stay on
  cameraOpens = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("shutter").showModal();
  } catch ({ name }) {
    $("status").textContent =
      name === "NotAllowedError" ? "The browser was not allowed to use the camera." : "No camera can be used.";
  } finally {
    cameraOpens = false;
  }
}
let cameraOpens = false;

function closeCamera() {
  const video = $("shutter").querySelector("video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

async function takePhoto() {
  const video = $("shutter").querySelector("video");
  if (!video.videoWidth) return; // nothing to see yet
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  $("shutter").close();
  const photo = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  add([new File([photo], `photo-${++photos}.jpg`, { type: photo.type })]);
}
let photos = 0; // taken

// What people do.

$("files").onchange = $("camera").onchange = ({ target }) => {
  add(target.files);
  target.value = ""; // so that the same file can be chosen again
};
$("form").onsubmit = (event) => {
  event.preventDefault();
  const wrong = [...pictures.keys()].filter(failed);
  classify(wrong.length ? wrong : pictures.keys()); // or those beyond a rate limit would never be answered
};
$("clear").onclick = () => {
  [...pictures.keys()].forEach(forget);
  $("files").focus();
  refresh();
};
$("csv").onclick = () => download("answers.csv", "text/csv", csv());
$("json").onclick = () => download("answers.json", "application/json", JSON.stringify(results(), null, 2));
$("model").onchange = () => {
  describe();
  classify(pictures.keys());
};
$("key").onchange = () => {
  endMessage(); // of another key
  loadModels();
};
$("copy").onclick = async () => {
  $("status").textContent = (await copied($("curl"))) ? "Copied" : "Press Ctrl+C to copy";
};
$("webcam").onclick = openCamera;
$("take").onclick = takePhoto;
$("cancel").onclick = () => $("shutter").close();
$("shutter").onclose = closeCamera;

document.addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  $("drop").classList.remove("over");
  const { files } = event.dataTransfer;
  if (!files.length && event.target.matches("input")) return; // a text for the key
  event.preventDefault(); // or the browser would open it in place of the page
  if (!files.length) $("status").textContent = "There was no picture in what was dropped.";
  add(files);
});

const phone = matchMedia("(pointer: coarse)").matches;
$("camera").hidden = document.querySelector("[for=camera]").hidden = !phone;
$("webcam").hidden = phone || !navigator.mediaDevices; // which pages of plain HTTP do not have
$("form").hidden = $("terminal").hidden = false;
refresh();
loadModels();
