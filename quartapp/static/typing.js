// Sends a form when the user stops typing, and shows the answer in the element whose id `data-typed` names: a list that
// is searched, or the rating of a password.

for (const source of all("[data-typed]")) {
  const { typed: id, to } = source.dataset
  const form = source.closest("form")
  let timer
  let sending = Promise.resolve() // one request at a time

  source.addEventListener("input", () => {
    clearTimeout(timer)
    timer = setTimeout(() => { sending = sending.then(send) }, 400)
  })

  async function send() {
    const body = new URLSearchParams(new FormData(form))
    body.delete("current_password") // which no rating needs
    const address = `${form.action}?${body}`
    const [, page] = await (to ? post(form, to, { body, headers: background }) : load(address))
    const fresh = page?.getElementById(id)
    // Without an answer, nothing is shown.
    if (fresh || to) first("#" + id).replaceChildren(...fresh?.childNodes ?? [])
    if (fresh && !to) history.replaceState(null, "", here = address)
  }
}
