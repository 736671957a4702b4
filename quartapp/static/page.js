// What all scripts share; passwords that can be shown; the rating of a new password; and keyboard shortcuts.

const pageData = document.body.dataset
const first = selector => document.querySelector(selector)
const all = selector => [...document.querySelectorAll(selector)]
const texts = JSON.parse(first("#texts").textContent)
const { lang } = document.documentElement

Object.assign(window, {
  pageData,
  first,
  all,
  here: pageData.here || location.pathname + location.search,
  user: pageData.user,
  isLocked: () => "locked" in pageData,

  // Returns the text in the language of the page, with the words filled in.
  say: (key, words) => texts[key]?.replace(/%\((\w+)\)s/g, (_, name) => words[name]),

  sayTime: at => new Date(at).toLocaleString(lang === "en" ? "en-GB" : lang, { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" }) + " UTC",

  element(name, ...children) {
    const created = document.createElement(name)
    created.append(...children)
    return created
  },

  button: (label, onclick) => Object.assign(element("button", label), { type: "button", onclick }),

  setText(selector, text) {
    for (const found of all(selector)) found.textContent = text
  },

  post: form => load(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) }),

  // Returns the answer, and the page that it contains.
  async load(url, options) {
    const answer = await fetch(url, { signal: AbortSignal.timeout(30_000), ...options })
    return [answer, new DOMParser().parseFromString(await answer.text(), "text/html")]
  },
})

for (const button of all("[data-reveal]")) {
  const input = button.previousElementSibling
  const show = shown => {
    input.type = shown ? "text" : "password"
    button.ariaPressed = shown
  }
  button.hidden = false
  button.onclick = () => show(input.type === "password")
  // Browsers remember and suggest the texts of text fields.
  input.form.addEventListener("submit", () => show(false))
}

for (const box of all("[data-strength]")) {
  const [meter, words] = box.children
  const { form } = box.previousElementSibling.firstChild
  let waiting
  let turn = 0

  form.elements.password.addEventListener("input", () => {
    clearTimeout(waiting)
    waiting = setTimeout(rate, 400, ++turn)
  })

  async function rate(mine) {
    const typed = new FormData(form)
    const names = ["csrf_token", "username", "email", "password"]
    const body = new URLSearchParams(names.map(name => [name, typed.get(name) ?? ""]))
    // Without an answer nothing is shown: the form is checked when it is sent.
    const options = { method: "POST", body, headers: { "X-Background": "1" }, redirect: "error" }
    const answer = typed.get("password") && await fetch(box.dataset.strength, options).catch(() => {})
    const { score, text = "" } = answer?.ok ? await answer.json() : {}
    if (mine !== turn) return
    meter.hidden = score === undefined
    meter.value = score ?? 0
    words.textContent = text
  }
}

const list = first("#shortcuts")
const enabled = first("#shortcuts-on")
let prefixAt = -Infinity // when "g" was pressed, which begins a sequence

if (list) {
  enabled.checked = localStorage.shortcuts !== "off"
  enabled.onchange = () => { localStorage.shortcuts = enabled.checked ? "on" : "off" }
  addEventListener("keydown", event => {
    const { key, target, timeStamp } = event
    const typing = target.matches("input, textarea, select, [contenteditable]")
    if (typing || !enabled.checked || event.ctrlKey || event.metaKey || event.altKey) return
    if (first("dialog[open]")) return
    const link = timeStamp - prefixAt < 1500 && linkFor(key)
    prefixAt = key === "g" ? timeStamp : -Infinity
    if (link) link.click()
    else if (key === "?") list.togglePopover()
    else if (key === "/") search(event)
  })
}

function linkFor(key) {
  return all("#shortcuts [data-key]").find(link => link.dataset.key === key && !link.closest("[data-needs][hidden]"))
}

// Focuses the search of this page, or opens the list of users or of posts with its search focused.
function search(event) {
  event.preventDefault()
  const field = first("main [type=search]")
  if (field) field.focus()
  else location.assign(`${linkFor("u") ?? linkFor("p")}#q`)
}
