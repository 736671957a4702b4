// What all scripts share: its names are global, as it is no module. Also shows passwords, and has shortcuts.

const pageData = document.body.dataset
const first = selector => document.querySelector(selector)
const all = selector => [...document.querySelectorAll(selector)]
const texts = JSON.parse(first("#texts").textContent)
const { lang } = document.documentElement
const locale = lang === "en" ? "en-GB" : lang
const { user } = pageData
const dialog = first("#ended") // of a locked page
let here = pageData.here || location.pathname + location.search

function isLocked() {
  return "locked" in pageData
}

// Returns the text in the language of the page, with the words filled in.
function say(key, words) {
  return texts[key]?.replace(/%\((\w+)\)s/g, (_, name) => words[name])
}

function sayTime(at) {
  return new Date(at).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" }) + " UTC"
}

function element(name, properties, ...children) {
  const created = Object.assign(document.createElement(name), properties)
  created.append(...children)
  return created
}

function button(label, onclick) {
  return element("button", { type: "button", onclick }, label)
}

function setText(selector, text) {
  for (const found of all(selector)) found.textContent = text
}

function isBox(field) {
  return field.matches("[type=checkbox], [type=radio]")
}

function initial(field) {
  if (field.matches("select")) return (field.querySelector("[selected]") ?? field.options[0])?.value
  return isBox(field) ? field.defaultChecked : field.defaultValue
}

function isChanged(field) {
  return field.matches("input, textarea, select") && (isBox(field) ? field.checked : field.value) !== initial(field)
}

// Headers of what the user did not ask for. It does not count as use of the session, which would extend it.
const background = { "X-Background": "1" }

function post(form, address = form.action, options = {}) {
  return load(address, { method: "POST", body: new URLSearchParams(new FormData(form)), ...options })
}

// Returns the answer and the page that it contains, or nothing without an answer.
async function load(url, options) {
  try {
    const answer = await fetch(url, { signal: AbortSignal.timeout(30_000), ...options })
    return [answer, new DOMParser().parseFromString(await answer.text(), "text/html")]
  } catch {
    return []
  }
}

addEventListener("click", ({ target }) => {
  const button = target.closest("[data-reveal]")
  if (button) reveal(button, button.ariaPressed === "false")
})

// Browsers remember what is sent as plain text.
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
