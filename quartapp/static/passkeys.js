// Passkeys: asks the browser to create or use a passkey, and submits the result with the form. The forms stay hidden
// without this script and in browsers without passkeys.

const words = first("[data-passkey-words]")
// The functions that read and write JSON came to all browsers in 2025.
const supported = window.isSecureContext && window.PublicKeyCredential?.parseRequestOptionsFromJSON
let suggesting = null // AbortController of the autofill suggestions, which end when a button is pressed

prepare(document)
if (supported) words?.remove()
else if (words) words.textContent = say("unsupported")

// sign_in.js calls this for forms that it adds to a page, with the address from which they came.
export function prepare(root, address = location) {
  if (!supported) return
  for (const form of root.querySelectorAll("form[data-passkey]")) {
    form.hidden = false
    form.addEventListener("submit", event => {
      if (form.elements.credential?.value) return
      event.preventDefault()
      suggesting?.abort()
      run(form)
    })
    // After a rejected passkey, do not offer it again: that could repeat without end.
    const rejected = new URL(address).pathname === new URL(form.action).pathname
    if (form.dataset.passkey === "get" && !form.dataset.confirm && !rejected) suggest(form)
  }
}

async function run(form) {
  const error = form.querySelector("[role=alert]")
  error.hidden = true
  try {
    await ask(form)
  } catch (failure) {
    error.textContent = say(failure.name) ?? say("failed")
    error.hidden = false
  }
}

async function ask(form, extra = {}) {
  const answer = await fetch(form.dataset.options, { cache: "no-store" })
  // The user has been signed out: reload to show why.
  if (answer.redirected) return location.reload()
  if (!answer.ok) throw new Error()
  const ceremony = form.dataset.passkey
  const parse = ceremony === "create" ? "parseCreationOptionsFromJSON" : "parseRequestOptionsFromJSON"
  const publicKey = PublicKeyCredential[parse](await answer.json())
  const credential = await navigator.credentials[ceremony]({ publicKey, ...extra })
  if (form.dataset.confirm) return confirmFirst(form, credential)
  const { remember, credential: field } = form.elements
  if (remember) remember.value = first("[type=checkbox][name=remember]:checked") ? "y" : ""
  field.value = JSON.stringify(credential)
  form.requestSubmit()
  field.value = ""
}

// Re-authentication: sends the passkey to /confirm, which makes the session fresh, then submits the waiting form.
async function confirmFirst(form, credential) {
  const body = new URLSearchParams({ csrf_token: form.elements.csrf_token.value, credential: JSON.stringify(credential) })
  const answer = await fetch(form.dataset.confirm, { method: "POST", body, redirect: "manual" })
  if (answer.type !== "opaqueredirect") throw new DOMException("", "NotAccepted")
  form.submit()
}

// Offers passkeys in the browser's list of usernames. A challenge expires after 5 minutes, so it is renewed after 4.
async function suggest(form) {
  if (!(await PublicKeyCredential.isConditionalMediationAvailable?.())) return
  suggesting?.abort()
  suggesting = new AbortController()
  const renewal = setTimeout(() => { suggesting.abort(); if (form.isConnected) suggest(form) }, 4 * 60_000)
  suggesting.signal.addEventListener("abort", () => clearTimeout(renewal))
  // The user did not ask for this, so errors are not shown.
  await ask(form, { mediation: "conditional", signal: suggesting.signal }).catch(() => {})
}
