// The page at `/`: collects pictures, asks POST /predict for each, and draws its answer.

const TOP = 5; // classes shown of each picture
const AT_ONCE = 2; // requests at a time

const $ = (id) => document.getElementById(id);
const cards = new Map(); // <li> → File
let models = [];

const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
const fromTemplate = (id) => $(id).content.firstElementChild.cloneNode(true);

function add(files) {
  for (const file of files) {
    const card = fromTemplate("card");
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.alt = `Preview of ${file.name}`;
    image.onload = () => URL.revokeObjectURL(image.src);
    image.onerror = () => {
      image.onerror = null; // what the browser cannot show, the server may still read
      image.className = "unknown";
      image.src = "/static/icon.svg";
    };
    card.querySelector(".name").textContent = file.name;
    const remove = card.querySelector(".remove");
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.onclick = () => {
      cards.delete(card);
      card.remove();
      refresh();
      $("files").focus();
    };
    cards.set(card, file);
    $("cards").append(card);
  }
  refresh();
}

function refresh() {
  const count = cards.size;
  $("classify").disabled = count === 0;
  $("clear").hidden = count === 0;
  $("status").textContent = count ? `${count} ${count === 1 ? "picture" : "pictures"}` : "";
  $("curl").textContent = curlLine();
}

function predictUrl() {
  const query = new URLSearchParams({ top: TOP });
  if (models.length > 1) query.set("model", $("model").value);
  return `${location.origin}/predict?${query}`;
}

function curlLine() {
  const names = [...cards.values()].map((file) => file.name);
  const files = (names.length ? names : ["photo.jpg"]).map((name) => `-F ${quote(`image=@${name}`)}`);
  const key = $("key").value ? ' -H "X-API-Key: $API_KEY"' : "";
  return `curl -X POST${key} ${files.join(" ")} ${quote(predictUrl())}`;
}

function quote(text) {
  return /^[\w@=.:/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// Ask the server, with the key if there is one; where it wants another, show the field for it.
async function request(url, options = {}) {
  const key = $("key").value;
  const response = await fetch(url, { ...options, headers: key ? { "X-API-Key": key } : {} });
  if (response.status !== 401) return response;
  $("key-row").hidden = false;
  throw new Error(key ? "This API key is not valid." : "Enter the API key of this server.");
}

async function ask(file) {
  const body = new FormData();
  body.append("image", file, file.name);
  return (await request(predictUrl(), { method: "POST", body })).json();
}

async function classify(card) {
  const verdict = card.querySelector(".verdict");
  verdict.className = "verdict";
  verdict.textContent = "…";
  card.querySelector(".bars").replaceChildren();
  try {
    const answer = await ask(cards.get(card));
    if (answer.success) draw(card, answer);
    else fail(verdict, answer.error.message);
  } catch (error) {
    fail(verdict, messageOf(error));
  }
}

// fetch() throws a TypeError where there is no answer.
function messageOf(error) {
  return error instanceof TypeError ? "The server cannot be reached. Is it running?" : error.message;
}

function verdictOf({ predictions: [best, next], uncertain, none_of_these }) {
  if (none_of_these) return "None of these";
  return uncertain ? `Not sure: ${best.label} or ${next.label}` : best.label;
}

function draw(card, answer) {
  const { predictions, uncertain } = answer;
  const verdict = card.querySelector(".verdict");
  verdict.classList.toggle("unsure", uncertain);
  verdict.textContent = verdictOf(answer);
  for (const { label, probability } of predictions) {
    const bar = fromTemplate("bar");
    bar.querySelector(".label").textContent = label;
    const progress = bar.querySelector("progress");
    progress.value = probability;
    progress.setAttribute("aria-label", label);
    bar.querySelector(".percent").textContent = percent(probability);
    card.querySelector(".bars").append(bar);
  }
}

function fail(verdict, message) {
  verdict.classList.add("failed");
  verdict.textContent = message;
}

async function classifyAll() {
  const waiting = [...cards.keys()];
  const count = waiting.length;
  $("classify").disabled = true;
  $("status").textContent = "Classifying…";
  const work = async () => {
    while (waiting.length) await classify(waiting.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  refresh();
  $("status").textContent = `Done: ${count} ${count === 1 ? "picture" : "pictures"}`;
}

// Put an element's text on the clipboard, which browsers give to pages of https and localhost alone;
// elsewhere by its selection, which stays for the person where this fails, too.
async function copied(element) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  }
  getSelection().selectAllChildren(element);
  return document.execCommand("copy");
}

async function loadModels() {
  try {
    ({ models } = await (await request("/models")).json());
  } catch (error) {
    $("status").textContent = messageOf(error);
    return;
  }
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  $("model-row").hidden = models.length < 2;
  describe();
}

function describe() {
  const model = models.find(({ name }) => name === $("model").value);
  $("about").textContent = `It knows ${model.labels.join(", ")}, and nothing else.`;
  refresh();
}

$("files").onchange = $("camera").onchange = ({ target }) => {
  add(target.files);
  target.value = ""; // so that the same file can be chosen again
};
$("form").onsubmit = (event) => {
  event.preventDefault();
  classifyAll();
};
$("clear").onclick = () => {
  cards.clear();
  $("cards").replaceChildren();
  refresh();
};
$("model").onchange = describe;
$("key").onchange = loadModels;
$("copy").onclick = async () => {
  $("status").textContent = (await copied($("curl"))) ? "Copied" : "Press Ctrl+C to copy";
};

document.addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add(event.dataTransfer.files);
});

refresh();
loadModels();
