// Search as you type: a form marked `data-filter` replaces the element with that id.
for (const form of all("[data-filter]")) {
  let turn = 0
  form.oninput = async () => {
    const mine = ++turn
    await new Promise(done => setTimeout(done, 250))
    const address = `${form.action}?${new URLSearchParams(new FormData(form))}`
    const [, page] = mine === turn ? await load(address) : []
    const part = page?.getElementById(form.dataset.filter)
    if (mine !== turn || !part) return
    document.getElementById(part.id).replaceWith(part)
    history.replaceState(0, 0, address)
  }
}
