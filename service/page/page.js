// The teacher's page: sends a paragraph, shows each question as it arrives. No dependencies.

const TEXTS = {
  vi: {
    registry: "Bộ điều hợp",
    tagline: "Từ một đoạn văn thành câu hỏi trắc nghiệm, ngay trên máy của trường",
    context: "Đoạn văn", words: "từ", sample: "Dùng đoạn mẫu", editContext: "Sửa đoạn văn",
    count: "Số câu", adapter: "Bộ điều hợp", quality: "Kiểm chứng",
    fast: "Nhanh, không kiểm chứng", balanced: "Vừa", best: "Kĩ nhất", language: "Ngôn ngữ", auto: "Tự nhận biết",
    generate: "Tạo câu hỏi", cancel: "Dừng", results: "Câu hỏi",
    empty: "Câu hỏi sẽ hiện ở đây, từng câu một.", base: "Mô hình gốc", standard: "mặc định",
    key: "✓ Đáp án", evidence: "Dẫn chứng", working: "Đang tạo câu hỏi…",
    stopped: "Đã dừng.", unreachable: "Không kết nối được với máy chủ.",
    fine: "Không phát hiện lỗi biên soạn.",
    verified: (p) => `Đã kiểm chứng với đoạn văn; xác suất đúng ước tính: ${p}.`,
    done: (n, s) => `Xong: ${n} câu trong ${s} giây.`,
    missing: (n) => `Thiếu ${n} câu: mô hình không viết được câu đạt yêu cầu.`,
    checks: {
      key_is_longest: "Đáp án dài hơn hẳn các phương án khác",
      stem_gives_key: "Câu dẫn làm lộ đáp án",
      options_overlap: "Hai phương án gần như giống nhau",
      all_or_none_of_the_above: "Có phương án “tất cả” hoặc “không có đáp án nào”",
      combined_options: "Có phương án gộp các phương án khác",
      absolute_terms: "Phương án nhiễu dùng từ tuyệt đối",
      negative_stem: "Từ phủ định trong câu dẫn chưa được viết hoa",
      blank_in_stem: "Câu dẫn có chỗ trống",
      unfocused_stem: "Câu dẫn chưa nêu rõ điều cần hỏi",
      mixed_kinds: "Các phương án không cùng loại",
      numbers_unsorted: "Các số chưa xếp theo thứ tự",
      only_true_false: "Các phương án chỉ là đúng hoặc sai",
      wrong_language: "Sai ngôn ngữ", foreign_script: "Có ký tự lạ",
      leftovers: "Còn sót ký hiệu thừa", names_the_passage: "Phải in kèm đoạn văn",
      key_not_supported: "Chưa tìm thấy dẫn chứng trong đoạn văn",
      numbers_not_in_context: "Có con số không xuất hiện trong đoạn văn",
      reader_agrees: "Mô hình đọc lại đoạn văn và chọn đáp án khác",
      verifier_agrees: "Mô hình thẩm định cho rằng câu hỏi chưa đạt",
      verified: "Chưa được kiểm chứng",
    },
  },
  en: {
    registry: "Adapters",
    tagline: "From a paragraph to multiple-choice questions, on the school's own machine",
    context: "Paragraph", words: "words", sample: "Use the sample", editContext: "Edit paragraph",
    count: "Questions", adapter: "Adapter", quality: "Verification",
    fast: "Fast, unverified", balanced: "Balanced", best: "Most thorough", language: "Language", auto: "Detect",
    generate: "Generate", cancel: "Stop", results: "Questions",
    empty: "Questions appear here, one by one.", base: "Bare base model", standard: "default",
    key: "✓ Key", evidence: "Evidence", working: "Generating…",
    stopped: "Stopped.", unreachable: "The server cannot be reached.",
    fine: "No item-writing flaw found.",
    verified: (p) => `Verified against the passage: right with an estimated probability of ${p}.`,
    done: (n, s) => `Done: ${n} questions in ${s} s.`,
    missing: (n) => `${n} missing: the model wrote no question that holds.`,
    checks: {
      key_is_longest: "The key is much longer than the other options",
      stem_gives_key: "The stem gives the key away",
      options_overlap: "Two options say nearly the same",
      all_or_none_of_the_above: "An option says “all” or “none of the above”",
      combined_options: "An option combines others",
      absolute_terms: "Distractors use absolute terms",
      negative_stem: "The stem's negation is not emphasised",
      blank_in_stem: "The stem has a blank",
      unfocused_stem: "The stem does not ask anything clear",
      mixed_kinds: "The options are of different kinds",
      numbers_unsorted: "The numbers are not in order",
      only_true_false: "The options are only true or false",
      wrong_language: "Wrong language", foreign_script: "Foreign characters",
      leftovers: "Left-over marks", names_the_passage: "Needs the passage beside it",
      key_not_supported: "No evidence found in the passage",
      numbers_not_in_context: "A number that the passage does not mention",
      reader_agrees: "The model, reading the passage again, chose otherwise",
      verifier_agrees: "The verifier holds the question to be unsound",
      verified: "Not verified",
    },
  },
};
const SAMPLE =
  "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí. RAM có tốc độ đọc, " +
  "ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt nguồn. Ngược lại, ổ đĩa " +
  "cứng HDD hoặc ổ thể rắn SSD lưu dữ liệu lâu dài, kể cả khi không có điện, song tốc độ truy cập " +
  "chậm hơn. Khi người dùng mở một tệp văn bản, hệ điều hành chép nội dung tệp từ ổ đĩa vào RAM để " +
  "chỉnh sửa. Nếu mất điện trước khi lưu, những thay đổi mới nhất chỉ nằm trong RAM nên sẽ không còn.";

const $ = (id) => document.getElementById(id);
let locale = localStorage.getItem("locale") ?? "vi";
let running = null; // AbortController of the generation under way
const texts = () => TEXTS[locale];

function translate() {
  document.documentElement.lang = locale;
  for (const node of document.querySelectorAll("[data-text]")) {
    node.textContent = texts()[node.dataset.text];
  }
  $("locale").textContent = locale === "vi" ? "English" : "Tiếng Việt";
  for (const item of $("questions").children) showChecks(item);
}

function element(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function listAdapters() {
  const list = $("adapter");
  list.replaceChildren();
  try {
    const answer = await fetch("/adapters");
    if (!answer.ok) return;
    const { adapters, default: standard } = await answer.json();
    for (const adapter of adapters.filter((a) => a.versions.some((v) => v.servable))) {
      list.append(element("option", { value: adapter.name, textContent: adapter.name }));
    }
    list.append(element("option", { value: "base", textContent: texts().base }));
    if (standard) list.value = standard.split(/[@/]/)[0];
  } catch { /* the page says so when something is asked for */ }
}

function showSource(context) {
  $("source").textContent = context;
  $("source").hidden = $("edit").hidden = false;
  $("context").hidden = true;
}

function editSource() {
  $("source").hidden = $("edit").hidden = true;
  $("context").hidden = false;
}

function highlight(context, evidence) {
  // Offsets count characters (code points), as Python does; JavaScript counts UTF-16 units.
  const characters = Array.from(context.normalize("NFC"));
  const part = (from, to) => characters.slice(from, to).join("");
  const mark = element("mark", { textContent: part(evidence.start, evidence.end) });
  $("source").replaceChildren(part(0, evidence.start), mark, part(evidence.end));
  mark.scrollIntoView({ block: "nearest" });
}

function showChecks(item) {
  const failed = item.question.checks.filter((check) => !check.passed);
  const lines = failed.map((check) => {
    const text = texts().checks[check.name] ?? check.name;
    return element("li", { textContent: check.detail ? `${text} (${check.detail})` : text });
  });
  const list = lines.length
    ? element("ul", { className: "flaws" }, ...lines)
    : element("p", { className: "fine", textContent: texts().fine });
  item.querySelector(".checks").replaceChildren(list);
  const verified = item.question.checks.find((check) => check.name === "verified");
  if (verified?.passed) {
    const text = texts().verified(Number(verified.detail).toLocaleString(locale));
    item.querySelector(".checks").append(element("p", { className: "fine", textContent: text }));
  }
  item.querySelector(".tag").textContent = texts().key;
  const button = item.querySelector(".evidence");
  if (button) button.textContent = texts().evidence;
}

function showQuestion(question, context, language) {
  $("empty").hidden = true;
  const options = Object.entries(question.options).map(([letter, text]) => {
    const line = element("li", {}, element("b", { textContent: `${letter}.` }), ` ${text}`);
    if (letter === question.key) {
      line.className = "key";
      line.append(element("span", { className: "tag" }));
    }
    return line;
  });
  const item = element("li", { lang: language, question },
    element("p", { className: "stem", textContent: question.question }),
    element("ul", { className: "options" }, ...options));
  if (question.evidence) {
    const button = element("button", { type: "button", className: "link evidence" });
    button.addEventListener("click", () => {
      showSource(context);
      highlight(context, question.evidence);
    });
    item.append(button);
  }
  item.append(element("div", { className: "checks" }));
  showChecks(item);
  $("questions").append(item);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replaceAll("\r\n", "\n");
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const lines = buffer.slice(0, end).split("\n");
      buffer = buffer.slice(end + 2);
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.filter((line) => line.startsWith("data: ")).map((l) => l.slice(6));
      if (name) yield { name, data: JSON.parse(data.join("\n")) };
    }
  }
}

async function generate(event) {
  event.preventDefault();
  const context = $("context").value;
  running = new AbortController();
  $("generate").disabled = true;
  $("cancel").hidden = false;
  $("questions").replaceChildren();
  showSource(context);
  say(texts().working);
  let language = "vi";
  let shown = 0;
  try {
    const answer = await fetch("/generate", {
      method: "POST",
      signal: running.signal,
      headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify({
        context, n: Number($("n").value), adapter: $("adapter").value || null,
        language: $("language").value, quality: $("quality").value,
      }),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    for await (const { name, data } of events(answer.body)) {
      if (name === "start") language = data.language;
      if (name === "question") { showQuestion(data, context, language); shown += 1; }
      if (name === "error") throw new Error(data.detail);
      if (name === "done") {
        const missing = data.shortfall ? ` ${texts().missing(data.shortfall)}` : "";
        say(texts().done(shown, data.usage.seconds) + missing, data.shortfall > 0);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") say(texts().stopped);
    else say(error instanceof TypeError ? texts().unreachable : error.message, true);
    if (!shown) editSource();
  } finally {
    running = null;
    $("generate").disabled = false;
    $("cancel").hidden = true;
  }
}

function countWords() {
  $("words").textContent = $("context").value.split(/\s+/).filter(Boolean).length;
}

$("form").addEventListener("submit", generate);
$("cancel").addEventListener("click", () => running?.abort());
$("context").addEventListener("input", countWords);
$("edit").addEventListener("click", editSource);
$("sample").addEventListener("click", () => {
  $("context").value = SAMPLE;
  editSource();
  countWords();
});
$("locale").addEventListener("click", () => {
  locale = locale === "vi" ? "en" : "vi";
  localStorage.setItem("locale", locale);
  translate();
});
translate();
listAdapters();
