// Keeps the elements marked `data-topics` up to date. See "Make a page live" in docs/extending.md.

const stale = new Set() // elements that may have changed
let loading // promise of replaceStale

// Replaces the elements that show these topics; hidden ones, of whose changes the server does not tell, when they are shown.
window.refreshTopics = topics => {
  for (const part of all("[data-topics]")) {
    if (part.closest("[hidden]") || part.dataset.topics.split(" ").some(topic => topics.includes(topic))) stale.add(part)
  }
  refresh()
}

// Then an element may be in use no longer.
for (const type of ["focusout", "toggle", "visibilitychange"]) addEventListener(type, () => setTimeout(refresh), true)

for (const part of all("[data-refresh]")) refreshLater(part)

// What a popover shows is loaded when it opens.
for (const part of all("[popover] [data-source]")) stale.add(part)

// Submits a small form without leaving the page. The focus returns to the same row.
addEventListener("submit", async event => {
  const form = event.target
  if (!("background" in form.dataset)) return
  event.preventDefault()
  const part = form.closest("[data-topics]")
  const row = form.closest("[id]").id
  const [answer] = await post(form)
  if (!answer?.ok) return form.submit()
  document.activeElement.blur()
  stale.add(part)
  await loading
  await refresh()
  first(`#${row} a`)?.focus()
})

// Some states change with time alone: `data-refresh` is the number of seconds after which to look again.
function refreshLater(part, seconds = part.dataset.refresh) {
  clearTimeout(part.timer)
  if (seconds) part.timer = setTimeout(() => { stale.add(part); refresh() }, seconds * 1000)
}

async function refresh() {
  if (loading || document.hidden || isLocked()) return
  loading = replaceStale().finally(() => { loading = null })
  await loading
  dispatchEvent(new Event("topics:shown"))
  if (![...stale].every(isBusy)) setTimeout(refresh, 1000)
}

async function replaceStale() {
  for (const part of stale) if (!part.isConnected) stale.delete(part)
  const idle = [...stale].filter(part => !isBusy(part) || (listIn(part) && part.checkVisibility()))
  for (const part of idle) stale.delete(part)
  for (const [address, parts] of Map.groupBy(idle, part => part.dataset.source ?? here)) {
    const page = await refetch(address, parts)
    for (const part of parts) {
      if (!page) refreshLater(part, 5)
      const fresh = part.dataset.source ? page?.querySelector(`main [data-source="${address}"]`) : page?.getElementById(part.id)
      if (fresh) refreshLater(update(part, document.importNode(fresh, true)))
    }
  }
}

// Returns undefined without an answer, and an empty page if the user may not see it.
async function refetch(address, parts) {
  const seen = parts.map(listIn).find(list => list)?.firstElementChild.id
  const [answer, page] = await load(address, { headers: { ...background, ...(seen && { "X-First": seen }) } })
  if (!answer || answer.status > 428) return
  if (!answer.ok || answer.redirected) return new Document()
  // Each answer has another token of the same value.
  for (const field of page.querySelectorAll("[name=csrf_token]")) field.setAttribute("value", first("[name=csrf_token]").value)
  return page
}

// The list whose rows must not move, unless it is empty.
function listIn(part) {
  const list = part.querySelector("[data-arrivals]")
  return list?.children.length ? list : null
}

// Brings the element up to date, and returns the one that is on the page now.
function update(part, fresh) {
  const [list, freshList] = [listIn(part), listIn(fresh)]
  if (!list || !freshList) return replace(part, fresh, part)
  const rows = new Map([...freshList.children].map(row => [row.id, row]))
  for (const row of [...list.children]) if (rows.has(row.id)) replace(row, rows.get(row.id).cloneNode(true), part)
  const shown = [...list.children].map(row => row.id)
  const link = part.querySelector(".arrivals")
  if (String(shown) === String([...rows.keys()])) return link.replaceChildren(), part
  link.replaceChildren(...fresh.querySelector(".arrivals").childNodes)
  link.onclick = event => {
    event.preventDefault()
    part.replaceWith(fresh)
    refreshLater(fresh)
    // What is being loaded is for the old element.
    if (stale.has(part) || loading) stale.add(fresh)
    loading?.then(refresh)
    fresh.tabIndex = -1
    fresh.focus()
  }
  return part
}

function replace(old, fresh, part) {
  if (old.isEqualNode(fresh)) return old
  if (isBusy(old)) return stale.add(part), old
  old.replaceWith(fresh)
  if (stale.delete(old)) stale.add(fresh)
  return fresh
}

// Whether the user is using the element, or does not see it.
function isBusy(part) {
  const selection = getSelection()
  return !part.checkVisibility()
    || part.contains(document.activeElement)
    || (!selection.isCollapsed && selection.containsNode(part, true))
    || [part, ...part.querySelectorAll("*")].some(each => each.matches("[open], :popover-open") || isChanged(each))
}
