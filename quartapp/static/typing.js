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
    const address = `${form.action}?${new URLSearchParams(new FormData(form))}`
    const [, page] = await (to ? post(form, to, { headers: background }) : load(address))
    const fresh = page?.getElementById(id)
    // Without an answer nothing is shown: the form is checked when it is sent.
    if (fresh || to) document.getElementById(id).replaceChildren(...fresh?.childNodes ?? [])
    if (fresh && !to) history.replaceState(null, "", here = address)
  }
}
