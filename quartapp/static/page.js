// What all scripts share; passwords that can be shown; and keyboard shortcuts.

const pageData = document.body.dataset
const first = selector => document.querySelector(selector)
const all = selector => [...document.querySelectorAll(selector)]
const texts = JSON.parse(first("#texts").textContent)
const { lang } = document.documentElement
const locale = lang === "en" ? "en-GB" : lang

Object.assign(window, {
  pageData,
  first,
  all,
  locale,
  here: pageData.here || location.pathname + location.search,
  user: pageData.user,
  isLocked: () => "locked" in pageData,

  // Returns the text in the language of the page, with the words filled in.
  say: (key, words) => texts[key]?.replace(/%\((\w+)\)s/g, (_, name) => words[name]),

  sayTime: at => new Date(at).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" }) + " UTC",

  element(name, properties, ...children) {
    const created = Object.assign(document.createElement(name), properties)
    created.append(...children)
    return created
  },

  button: (label, onclick) => element("button", { type: "button", onclick }, label),

  setText(selector, text) {
    for (const found of all(selector)) found.textContent = text
  },

  // Headers of what the user did not ask for. It does not count as use of the session, which would extend it.
  background: { "X-Background": "1" },

  post: form => load(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) }),

  // Returns the answer and the page that it contains, or nothing without an answer.
  async load(url, options) {
    try {
      const answer = await fetch(url, { signal: AbortSignal.timeout(30_000), ...options })
      return [answer, new DOMParser().parseFromString(await answer.text(), "text/html")]
    } catch {
      return []
    }
  },
})

addEventListener("click", ({ target }) => {
  const button = target.closest("[data-reveal]")
  if (button) reveal(button, button.ariaPressed === "false")
})

// Browsers remember and suggest the texts of text fields.
addEventListener("submit", ({ target }) => {
  for (const button of target.querySelectorAll("[data-reveal]")) reveal(button, false)
})

function reveal(button, shown) {
  button.previousElementSibling.type = shown ? "text" : "password"
  button.ariaPressed = shown
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
