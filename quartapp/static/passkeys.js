// Passkeys: asks the browser for one, and sends what it answers as a form is sent. The forms are hidden without
// this script, and where the browser knows no passkeys; the password goes on working.

const words = document.querySelector("[data-passkey-words]")
const known = window.isSecureContext && "PublicKeyCredential" in window
let suggesting = null // the offer in the list under the username, until a button is pressed

for (const form of document.querySelectorAll("form[data-passkey]")) {
  if (!known) break
  form.hidden = false
  form.addEventListener("submit", event => {
    event.preventDefault()
    suggesting?.abort()
    run(form)
  })
  if (form.dataset.passkey === "get" && !form.dataset.confirm) suggest(form)
}
if (words && known) words.hidden = true
else if (words) words.textContent = "This browser knows no passkeys. Another one may: they come with phones, with newer systems, and on keys for USB."

async function run(form) {
  const error = form.querySelector("[role=alert]")
  error.hidden = true
  try {
    await ask(form)
  } catch (failure) {
    error.textContent = reason(failure)
    error.hidden = false
  }
}

async function ask(form, extra = {}) {
  const answer = await fetch(form.dataset.options, { cache: "no-store" })
  // Signed out meanwhile: the page itself knows best what to say.
  if (answer.redirected) return location.reload()
  if (!answer.ok) throw new Error(`options: ${answer.status}`)
  const { parse, call } = ceremonies[form.dataset.passkey]
  const credential = await call({ publicKey: parse(await answer.json()), ...extra })
  if (form.dataset.confirm) return confirmFirst(form, credential)
  const tick = document.querySelector("input[type=checkbox][name=remember]")
  if (form.elements.remember) form.elements.remember.value = tick?.checked ? "y" : ""
  form.elements.credential.value = json(credential)
  form.submit()
}

// Re-authentication: the passkey makes the session fresh, and then the form is sent that was waiting for that.
async function confirmFirst(form, credential) {
  const body = new URLSearchParams({ csrf_token: form.elements.csrf_token.value, credential: json(credential) })
  const answer = await fetch(form.dataset.confirm, { method: "POST", body, redirect: "manual" })
  if (answer.type !== "opaqueredirect") throw new DOMException("", "NotAccepted")
  form.submit()
}

const json = credential => JSON.stringify(credential.toJSON?.() ?? plain(credential))

// Offers passkeys beside the usernames that the browser remembers. A challenge lasts for five minutes, a page may for hours.
async function suggest(form) {
  // This page says that a passkey was refused: to offer it at once again could go on for ever.
  if (location.pathname === new URL(form.action).pathname) return
  if (!(await PublicKeyCredential.isConditionalMediationAvailable?.())) return
  suggesting = new AbortController()
  const renewal = setTimeout(() => { suggesting.abort(); suggest(form) }, 4 * 60_000)
  suggesting.signal.addEventListener("abort", () => clearTimeout(renewal))
  // Nobody has asked for it, so nobody is told when it fails.
  await ask(form, { mediation: "conditional", signal: suggesting.signal }).catch(() => {})
}

const ceremonies = {
  create: {
    parse: json => PublicKeyCredential.parseCreationOptionsFromJSON?.(json) ?? {
      ...json,
      challenge: bytes(json.challenge),
      user: { ...json.user, id: bytes(json.user.id) },
      excludeCredentials: json.excludeCredentials.map(each => ({ ...each, id: bytes(each.id) })),
    },
    call: options => navigator.credentials.create(options),
  },
  get: {
    parse: json => PublicKeyCredential.parseRequestOptionsFromJSON?.(json) ?? {
      ...json,
      challenge: bytes(json.challenge),
      allowCredentials: json.allowCredentials.map(each => ({ ...each, id: bytes(each.id) })),
    },
    call: options => navigator.credentials.get(options),
  },
}

function reason({ name }) {
  switch (name) {
    case "InvalidStateError": return "This device has a passkey for your account already."
    case "NotAllowedError": return "No passkey was used. Nothing has changed; you can try again."
    case "NotSupportedError": return "This device cannot make such a passkey."
    case "NotAccepted": return "This passkey was not accepted. Try it again, or another way."
    case "SecurityError": return "Passkeys do not work at this address."
    default: return "Something went wrong between your browser and the server. Try again."
  }
}

// For browsers from before 2025

function bytes(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), letter => letter.charCodeAt(0))
}

function text(buffer) {
  return btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")
}

function plain({ id, rawId, type, authenticatorAttachment, response }) {
  const said = { clientDataJSON: text(response.clientDataJSON) }
  for (const part of ["attestationObject", "authenticatorData", "signature", "userHandle"]) {
    if (response[part]) said[part] = text(response[part])
  }
  if (response.getTransports) said.transports = response.getTransports()
  return { id, rawId: text(rawId), type, authenticatorAttachment, response: said }
}
