// Stores unsaved text of forms marked `data-draft` in the session storage of this tab, per user and form, until the
// server has accepted the form. Restores it for the same user only. See docs/adr/0084-drafts-of-unsent-text.md.

const PREFIX = "draft:"
const SIGNED_OUT = "draft:signed-out" // key in local storage: when a user last signed out in this browser
const KEPT_FOR = 7 * 24 * 3600 * 1000
const MOST_DRAFTS = 20
const LONGEST_DRAFT = 200_000
const NOT_TYPED = /^(password|file|submit|select-multiple)$/

const [navigation] = performance.getEntriesByType("navigation")
let leftAt = 0
let filling = false // This script is changing a field.
let forgotten = false // This browser has signed out: store nothing until the user types again.
let unsent = null // The form with changes that the server does not have.
let sending = Promise.resolve() // One request at a time.
let timer

settleSent(true)
draftForms().forEach(offer)

// Storing

addEventListener("input", ({ target }) => {
  const { form } = target
  if (filling || !form?.matches("[data-draft]")) return
  forgotten = false
  saveForm(form)
  unsent = form
  clearTimeout(timer)
  timer = setTimeout(send, 3000)
})

// Asks before text is lost. The next page here has it.
addEventListener("click", ({ target }) => { if (target.closest("a[href]")) leftAt = Date.now() })
addEventListener("beforeunload", event => {
  if (draftForms().some(draftOf) && !isLocked() && Date.now() - leftAt > 1000) event.preventDefault()
})

function saveForm(form) {
  const old = draftOf(form)
  const fields = {}
  for (const { field, name, property } of fieldsOf(form)) {
    if (!isUnsaved(form) && !isChanged(field)) continue
    // A rejected form shows what the user typed, not what the server had stored when they began.
    const base = isUnsaved(form) && old?.fields[name]
    fields[name] = { value: field[property], initial: base ? base.initial : initial(field) }
  }
  // A submitted draft is kept unless the user has typed more since.
  if (JSON.stringify(old?.fields) === JSON.stringify(fields)) return
  if (Object.keys(fields).length) write(keyOf(form), { at: Date.now(), fields, caret: caretIn(form) ?? old?.caret })
  else remove(keyOf(form))
}

// For live.js, before it locks or empties the page. Returns how many of its forms have a draft.
window.keepDrafts = () => draftForms().filter(form => {
  if (!forgotten && !draftOf(form)) saveForm(form)
  const draft = draftOf(form)
  if (draft) write(keyOf(form), { ...draft, caret: caretIn(form) ?? draft.caret, resume: true })
  return draft
}).length

// Storing on the server, for a form whose `data-draft` is the address

addEventListener("visibilitychange", () => document.hidden && send())
// The next page would not know of it.
addEventListener("pagehide", () => { unsent = null })

function send() {
  sending = sending.then(async () => {
    const form = unsent
    if (!form?.dataset.draft || isLocked()) return
    unsent = null
    const sent = new FormData(form)
    const [answer, page] = await post(form, form.dataset.draft, { headers: background, keepalive: document.hidden })
    const fresh = page?.getElementById("draft")
    if (fresh && answer.ok) {
      for (const [name, value] of sent) form.elements[name].defaultValue = value
      delete form.dataset.unsaved
      form.querySelector(".draft-note")?.remove()
      saveForm(form)
    }
    if (fresh) first("#draft").replaceWith(fresh)
    else first("#draft p").textContent = say("draftFailed")
    // After a refusal, only this tab keeps the text.
    if ([403, 404, 409].includes(answer?.status)) form.dataset.draft = ""
  })
}

// Sending

addEventListener("submit", ({ target: form, defaultPrevented }) => {
  if (defaultPrevented || form.getAttribute("method") !== "post") return
  if (pathOf(form) === "/logout") {
    forget()
    localStorage[SIGNED_OUT] = Date.now()
    return
  }
  leftAt = Date.now()
  unsent = null
  const draft = draftOf(form)
  if (draft) write(keyOf(form), { ...draft, sent: location.href.split("#")[0] })
})

// Drops a sent draft if the server redirected to a page without an error.
function settleSent(mayBeAccepted) {
  const signedOut = Number(localStorage[SIGNED_OUT] ?? 0)
  for (const key of keys()) {
    const draft = read(key)
    if (!draft || draft.at < Math.max(signedOut, Date.now() - KEPT_FOR)) remove(key)
    else if (draft.sent && key.startsWith(`${PREFIX}${user}:`)) {
      if (mayBeAccepted && wasAccepted(key, draft.sent)) remove(key)
      else write(key, { ...draft, sent: undefined, tried: true })
    }
  }
}

function wasAccepted(key, sentFrom) {
  const redirected = navigation?.type === "navigate" && navigation.redirectCount > 0
  const refused = first("[role=alert]:not([hidden])") || draftForms().some(form => isUnsaved(form) && keyOf(form) === key)
  return redirected && document.referrer === sentFrom && !refused
}

// Offering

function offer(form) {
  const draft = draftOf(form)
  // The server rejected the form and returned the text: store it.
  if (isUnsaved(form) && (!draft || draft.tried)) return saveForm(form)
  if (!draft) return
  const kept = [...fieldsOf(form)].filter(({ name }) => name in draft.fields)
  const differing = kept.filter(({ field, name, property }) => field[property] !== draft.fields[name].value)
  if (!differing.length) {
    // Either the browser has restored the text, or the server has stored it.
    if (!isUnsaved(form) && !kept.some(({ field }) => isChanged(field))) remove(keyOf(form))
    return
  }
  const untouched = differing.every(({ field, name }) => !isChanged(field) && initial(field) === draft.fields[name].initial)
  if (untouched) return restore(form, draft)
  showNote(form, say("unsaved", { time: sayTime(draft.at) }), {
    [say("restore")]: () => restore(form, draft),
    [say("discard")]: () => discard(form, draft),
  })
}

function restore(form, draft) {
  fill(form, draft, ({ name }) => draft.fields[name].value)
  write(keyOf(form), { ...draft, resume: undefined, tried: undefined })
  showNote(form, say("restored", { time: sayTime(draft.at) }), {
    [say("discard")]: () => {
      fill(form, draft, ({ field }) => initial(field))
      discard(form, draft)
    },
  })
  if (draft.resume || ["reload", "back_forward"].includes(navigation?.type)) placeCaret(form, draft.caret)
}

function discard(form, draft) {
  remove(keyOf(form))
  showNote(form, say("discarded"), { [say("undo")]: () => restore(form, draft) })
}

function fill(form, draft, valueOf) {
  filling = true
  for (const each of fieldsOf(form)) {
    if (!(each.name in draft.fields)) continue
    each.field[each.property] = valueOf(each)
    each.field.dispatchEvent(new Event("input", { bubbles: true }))
  }
  filling = false
}

// If a button of the previous note had the focus, the first one gets it.
function showNote(form, text, buttons) {
  const old = form.querySelector(".draft-note")
  const focused = old?.contains(document.activeElement)
  old?.remove()
  const words = element("p", { role: "status" })
  const note = element("div", { className: "draft-note" }, words)
  for (const [label, act] of Object.entries(buttons)) note.append(button(label, act))
  form.prepend(note)
  if (focused) note.querySelector("button").focus()
  // Screen readers announce a change of an existing status element, not a new one.
  setTimeout(() => { words.textContent = text }, 50)
}

function caretIn(form) {
  const field = document.activeElement
  if (!form.contains(field) || isBox(field) || !field.matches("textarea, input")) return
  return { name: field.name, start: field.selectionStart, end: field.selectionEnd }
}

function placeCaret(form, caret) {
  const field = caret && form.elements[caret.name]
  if (!field?.focus || document.activeElement !== document.body || location.hash) return
  field.focus()
  if (caret.start !== null) field.setSelectionRange(caret.start, caret.end)
}

// Signing out

addEventListener("storage", ({ key, newValue }) => key === SIGNED_OUT && newValue && forget())

function forget() {
  forgotten = true
  unsent = null
  keys().forEach(remove)
  first("#ended-kept").hidden = true
}

addEventListener("pageshow", ({ persisted }) => {
  if (!persisted) return
  settleSent(false)
  draftForms().forEach(offer)
})

// Forms and fields

function draftForms() {
  return all("form[data-draft]")
}

// Whether the fields hold what the user sent, and not what the server has stored.
function isUnsaved(form) {
  return "unsaved" in form.dataset
}

function pathOf(form) {
  return new URL(form.getAttribute("action") || location, location).pathname
}

function keyOf(form) {
  return `${PREFIX}${user}:${pathOf(form)}`
}

function draftOf(form) {
  return read(keyOf(form))
}

// Yields the fields that the user can change, which browsers validate. Never passwords, codes or autocomplete=off.
function* fieldsOf(form) {
  for (const field of form.elements) {
    if (!field.willValidate || !field.name || NOT_TYPED.test(field.type)) continue
    if (/\boff\b|password|one-time-code|\bcc-/.test(field.getAttribute("autocomplete") ?? form.getAttribute("autocomplete"))) continue
    const box = isBox(field)
    yield { field, name: box ? `${field.name}=${field.value}` : field.name, property: box ? "checked" : "value" }
  }
}

// Storage

function keys() {
  return Object.keys(sessionStorage).filter(key => key.startsWith(PREFIX))
}

function read(key) {
  return JSON.parse(sessionStorage.getItem(key))
}

function write(key, draft) {
  const text = JSON.stringify(draft)
  if (text.length > LONGEST_DRAFT) return
  const others = read(key) ? [] : keys().sort((a, b) => read(a)?.at - read(b)?.at)
  for (const oldest of others.slice(0, 1 - MOST_DRAFTS)) remove(oldest)
  try {
    sessionStorage[key] = text
  } catch {
    // It is full: the text is only on the page.
  }
}

function remove(key) {
  delete sessionStorage[key]
}
