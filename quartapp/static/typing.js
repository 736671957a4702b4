// Sends a form when the user stops typing, and shows the answer in the element whose id `data-typed` names: what a search
// finds, or the rating of a password.

for (const source of all("[data-typed]")) {
  const { typed: id, to } = source.dataset
  const form = source.closest("form")
  let timer
  let changed = false // since the last request
  let sending = false

  source.addEventListener("input", () => {
    changed = true
    wait()
  })

  function wait() {
    clearTimeout(timer)
    timer = setTimeout(send, 400)
  }

  async function send() {
    if (sending) return
    changed = false
    sending = true
    const body = new URLSearchParams(new FormData(form))
    const address = to ?? `${form.action}?${body}`
    const [, page] = await load(address, to && { method: "POST", body, headers: background, redirect: "error" })
    const fresh = page?.getElementById(id)
    // Without an answer nothing is shown: the form is checked when it is sent.
    if (fresh || to) document.getElementById(id).replaceChildren(...fresh?.childNodes ?? [])
    if (fresh && !to) history.replaceState(null, "", here = address)
    sending = false
    if (changed) wait()
  }
}
