// Signs in inside the dialog of a locked page, with the forms of the sign-in pages. If the same user signs in, here or
// in another tab, the page goes on where it was. See docs/adr/0104-signing-in-inside-the-dialog.md.

const place = first("#ended-form")
const link = first("#ended-action")
let failed = false // Then the link works as it does without this script.

dialog.onclick = event => {
  const href = event.target.closest("a[href^='/login']")?.href
  if (!href || failed || event.ctrlKey || event.metaKey) return
  event.preventDefault()
  advance(load(href))
}

dialog.onsubmit = event => {
  if (event.defaultPrevented) return
  event.preventDefault()
  advance(post(event.target))
}

// The user has returned to this tab, or signed in in another.
for (const type of ["focus", "visibilitychange", "storage"]) {
  addEventListener(type, () => document.hidden || !isLocked() || resume())
}

// Takes a step of the sign-in. An answer that is no step, such as a page to verify an address, is opened.
async function advance(loading) {
  place.inert = true
  const [answer, page] = await loading
  place.inert = false
  // Another tab may have signed in meanwhile.
  if (!isLocked()) return
  if (!answer) fail()
  else if (page.body.dataset.user) resume(page)
  else if (page.querySelector("main [action^='/login']") || !answer.ok) show(page, answer.url)
  else location.assign(answer.url)
}

function fail() {
  failed = true
  link.hidden = false
  setText("#ended-message", say("offline"))
}

async function show(page, url) {
  const script = page.querySelector("script[src*=passkeys]")
  const passkeys = script && await import(script.src).catch(() => {})
  place.replaceChildren(...page.querySelectorAll(".flashes > *, main .lede, main > :not(header, h1)"))
  passkeys?.prepare(place, url)
  setText("#ended-title", page.querySelector("h1").textContent)
  link.hidden = true
  const fields = [...place.querySelectorAll("[autofocus], input, button")]
  fields.find(field => field.checkVisibility())?.focus()
}

// Unlocks the page if the server shows it to the same user, else opens it after a sign-in.
async function resume(signedIn) {
  const [answer, page] = await load(here, { headers: background, redirect: "manual" })
  if (!isLocked()) return
  if (!answer) return signedIn && fail()
  const { dataset } = page.body
  if (!answer.ok || dataset.user !== user) return signedIn && location.assign(here)
  const token = page.querySelector("[name=csrf_token]").value
  for (const field of all("[name=csrf_token]")) field.value = token
  if (signedIn) first(".flashes").append(...signedIn.querySelectorAll(".flashes > *"))
  place.replaceChildren()
  link.hidden = false
  unlock(dataset.session)
  localStorage.signedIn = dataset.session
}
