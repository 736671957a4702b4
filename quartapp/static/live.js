// Keeps an open page true to what its user may do now: follows /ws, shows and hides what depends on a
// permission, tells what arrives, and locks the page when its session is over. Every page works without it.

const { session, user, username } = document.body.dataset
const here = document.body.dataset.here || location.pathname + location.search
const main = document.querySelector("main")
const renderedCursor = document.body.dataset.cursor

// A refused POST is answered with the page that holds its form: give it that page's address, to reload and share.
if ("refused" in document.body.dataset) history.replaceState(null, "", here)

let socket = null
let attempt = 0
let retry, watchdog, stateText, explanation
let submittedAt = 0 // a form was sent: in Firefox that closes the socket, even if its answer is a download
let leavingAt = 0 // a form was sent whose answer replaces this page
let freshening = false
let freshenAgain = false // something arrived meanwhile
let over = false // the session has ended, or is no longer this page's: never connect again
let stopped = false
let version = Number(document.body.dataset.version)
let permissions = new Set(document.body.dataset.permissions.split(" ").filter(Boolean))
let pageRefused = !pageAllowed()
let cursor = sessionStorage.getItem(`cursor:${user}`) || renderedCursor
const heard = new Set()

connect()

for (const receipt of document.querySelectorAll("[data-pending]")) followReceipt(receipt)

// The connection

function connect() {
  clearTimeout(retry)
  if (over || stopped || socket) return
  const url = new URL("/ws", location.href)
  url.protocol = url.protocol.replace("http", "ws")
  if (cursor) url.searchParams.set("cursor", cursor)
  const mine = (socket = new WebSocket(url))
  const begun = Date.now()
  mine.onmessage = event => socket === mine && hear(JSON.parse(event.data))
  mine.onclose = event => socket === mine && closed(event, Date.now() - begun)
}

function disconnect() {
  clearTimeout(retry)
  clearTimeout(watchdog)
  const old = socket
  socket = null
  old?.close()
}

async function closed({ code, reason }, lived) {
  socket = null
  clearTimeout(watchdog)
  if (over) return
  if (code === 4401) return explainEnd()
  if (code === 4400) return stop()
  showState("reconnecting")
  // A server may fail right after each handshake, so only a connection that lasted clears the count.
  if (code === 1012 || lived > 10_000) attempt = 0
  if (code === 1013) attempt = Math.max(attempt, 3)
  const justSubmitted = Date.now() - submittedAt < 10_000
  const longest = justSubmitted && attempt === 0 ? 0.3 : Math.min(30, 2 ** attempt)
  attempt++
  // A browser reports a refused handshake and a broken line alike as 1006: ask which it was.
  if (code === 1006 && !(await stillMe())) return
  // A server that leaves says when to come back, so that not all of its pages do at once.
  const told = code === 1012 && Number(/in (\d+(\.\d+)?) s$/.exec(reason)?.[1])
  retry = setTimeout(connect, (told || Math.random() * longest) * 1000)
}

// A 4400 means that this script and the server disagree about the protocol; trying again would not help.
function stop() {
  stopped = true
  showState("stopped")
}

// The page asks by itself, perhaps unattended: the header says that this is no use of the session.
function fetchInBackground(address) {
  const headers = { "X-Background": "1" }
  return fetch(address, { cache: "no-store", headers, signal: AbortSignal.timeout(10_000) })
}

async function whoAmI() {
  try {
    const answer = await fetchInBackground("/api/me")
    if (answer.status === 401) return { ended: (await answer.json().catch(() => null))?.ended ?? {} }
    if (answer.ok) return { me: await answer.json() }
  } catch {
    // No network: nothing is known, which is for the caller to say.
  }
  return {}
}

async function stillMe() {
  const { me, ended } = await whoAmI()
  if (over) return false
  if (ended) lockEnded(ended)
  else if (me && (me.session !== session || me.username !== username)) lockForeign(me.username)
  return !over
}

// For a close that came without its session.ended. The page locks first and learns the reason after.
async function explainEnd() {
  lockEnded({})
  const { ended } = await whoAmI()
  if (ended?.session === session && ended.message) setText("#ended-message", ended.message)
}

function reconnectNow() {
  if (socket || over || stopped) return
  attempt = 0
  connect()
}

// What the server says

function hear(message) {
  const { type, id } = message
  try {
    if (id === undefined || !heard.has(id)) handlers[type]?.(message)
  } finally {
    if (id !== undefined) {
      heard.add(id)
      say({ type: "ack", id })
    }
  }
}

function say(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message))
}

const handlers = {
  hello(message) {
    if (message.user.id !== user || message.session !== session) return lockForeign(message.user.username)
    showState("connected")
    if (!cursor) rememberCursor(message.cursor)
    adopt(message)
    freshen()
  },

  ping({ at }) {
    say({ type: "pong", at })
    // A line that died without a word shows only as silence, for example after the lid was closed.
    clearTimeout(watchdog)
    watchdog = setTimeout(() => { disconnect(); connect() }, 90_000)
    freshen()
  },

  "permissions.changed"(message) {
    freshen()
    if (!adopt(message)) return
    const gained = message.added?.length ? `You now have: ${message.added.join(", ")}.` : ""
    const lost = message.removed?.length ? `You no longer have: ${message.removed.join(", ")}.` : ""
    const by = message.by ? `Changed by ${message.by}.` : ""
    if (gained || lost) toast([gained, lost, by].filter(Boolean).join(" "))
  },

  "session.started"({ session: { device, ip } }) {
    toast(`Signed in on another device: ${device}, ${ip}.`, { href: "/account/sessions", label: "See your sessions" })
    freshen()
  },

  "session.ended"(message) {
    // The socket stays open for the acknowledgement, which says that the page is locked. The server closes it.
    // When this page has just sent a form (to sign out, say), the answer is under way and explains it better:
    // then the page is locked at once too, and only the dialog waits.
    lockEnded(message, Date.now() - leavingAt < 10_000 ? 3000 : 0)
  },

  notice({ id, text }) {
    if (!isLater(id, cursor)) return
    rememberCursor(id)
    freshen()
    // What came between the last page and this one is already counted in this page's badge.
    if (isLater(id, renderedCursor)) bumpUnread()
    toast(text)
  },
}

function isLater(id, than) {
  return BigInt(id) > BigInt(than || 0)
}

function rememberCursor(id) {
  cursor = id
  sessionStorage.setItem(`cursor:${user}`, id)
}

// What the user may do

// Takes over what the user may do, unless something newer is known; says whether it did.
function adopt(message) {
  if (message.version < version) return false
  version = message.version
  permissions = new Set(message.permissions)
  for (const part of document.querySelectorAll("[data-needs]:not(main)")) {
    part.hidden = !mayAny(part.dataset.needs)
  }
  setText("[data-roles]", message.roles.join(", ") || "none")
  setText("[data-permission-list]", [...permissions].sort().join(", ") || "none")
  judgePage(message.by)
  return true
}

function mayAny(needs) {
  return needs.split(" ").some(permission => permissions.has(permission))
}

function pageAllowed() {
  return !main.dataset.needs || mayAny(main.dataset.needs)
}

function judgePage(by) {
  if (pageAllowed() === !pageRefused) return
  pageRefused = !pageRefused
  if (pageRefused) withholdPage(by)
  else toast("You may open this page now.", { href: here, label: "Open it", stays: true })
}

function withholdPage(by) {
  const kept = keepDrafts()
  const needed = element("code", main.dataset.needs.replaceAll(" ", " or "))
  const words = element("p", "It takes the permission ", needed, by ? `, which ${by} has taken from you.` : ", which you no longer have.")
  words.className = "lede"
  main.className = "plate"
  main.replaceChildren(element("h1", "You may no longer see this page"), words)
  if (kept) main.append(element("p", "What you typed is kept in this tab, and will be back if you may open it again."))
  main.focus()
}

// What is told

function toast(text, { href, label, stays = false } = {}) {
  const words = element("p", text)
  if (href) {
    const link = element("a", label)
    link.href = href
    words.append(" ", link)
  }
  const close = element("button", "×")
  close.type = "button"
  close.ariaLabel = "Dismiss"
  const box = element("div", words, close)
  box.className = "toast"
  close.onclick = () => box.remove()
  const region = document.getElementById("toasts")
  region.append(box)
  if (region.children.length > 4) region.firstElementChild.remove()
  if (!stays) fade(box)
}

// Notices stay readable on their own page, so a toast may go; never while somebody points at it.
function fade(box) {
  setTimeout(() => (box.matches(":hover, :focus-within") ? fade(box) : box.remove()), 12_000)
}

// A list that grows while it is looked at. What arrives says only that something has happened, so the page is
// asked for again; what nothing was said of is found with the next ping. Rows that are known stay where they are.
async function freshen() {
  const list = document.querySelector("[data-fresh]")
  if (!list || freshening || document.hidden || over) return void (freshenAgain = freshening)
  freshening = true
  try {
    const answer = await fetchInBackground(here)
    if (!answer.ok || answer.redirected) return
    const page = new DOMParser().parseFromString(await answer.text(), "text/html")
    const known = list.firstElementChild
    for (const row of [...(page.querySelector("[data-fresh]")?.children ?? [])]) {
      const old = document.getElementById(row.id)
      if (!old) known.before(row)
      else if (old.dataset.state !== row.dataset.state) old.replaceWith(row)
    }
  } catch {
    // No network: the next ping, or the next page, knows better.
  } finally {
    freshening = false
    if (freshenAgain) setTimeout(freshen)
    freshenAgain = false
  }
}

// How many tabs have acknowledged that their session is over. The server says when nothing changes any more.
async function followReceipt(receipt, wait = 500) {
  await new Promise(resolve => setTimeout(resolve, wait))
  if (over || wait > 20_000) return
  try {
    const answer = await fetchInBackground(receipt.dataset.receipt)
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html")
      const news = page.querySelector("main [data-receipt]")
      if (news && news.textContent !== receipt.textContent) {
        receipt.replaceWith(news)
        receipt = news
      }
    }
  } catch {
    // No network: the next attempt, or the next page, knows better.
  }
  if ("pending" in receipt.dataset) followReceipt(receipt, wait * 1.5)
}

function bumpUnread() {
  for (const badge of document.querySelectorAll("[data-unread]")) {
    badge.textContent = Number(badge.textContent) + 1
    badge.hidden = false
  }
  for (const words of document.querySelectorAll("[data-unread-words]")) words.hidden = false
}

function showState(state) {
  const live = document.getElementById("live")
  live.hidden = false
  if (state === "reconnecting" && !navigator.onLine) state = "offline"
  const before = live.dataset.state
  if (before === state) return
  live.dataset.state = state
  live.title = { connected: "Live: changes reach this page as they happen" }[state] ?? ""
  clearTimeout(stateText)
  const text = { reconnecting: "Reconnecting…", offline: "Offline", stopped: "Live updates stopped" }[state] ?? ""
  // A server that restarts is back within a second or two; that is not worth a word.
  const wait = state === "reconnecting" && before !== "offline" ? 2000 : 0
  stateText = setTimeout(setText, wait, ".live-text", text)
}

// The end

function lockEnded({ session: ended = session, reason, message, by, at }, explainAfter = 0) {
  const other = ended !== session // its reason is about somebody else's page
  const when = at ? new Date(at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" }) + " UTC" : ""
  lock({
    title: reason === "signed_out" ? "You have signed out" : "You have been signed out",
    message: (!other && message) || "Your session has ended.",
    by: other ? "" : [by && by !== username && `By ${by}`, when].filter(Boolean).join(", "),
    action: "Sign in again",
    href: `/login?${new URLSearchParams({ ended: session, next: here })}`,
    explainAfter,
  })
}

function lockForeign(name) {
  disconnect()
  lock({
    title: "This page has expired",
    message: name === username
      ? "You have signed in again in another tab."
      : `You are signed in as ${name} in another tab. This page was made for ${username}.`,
    action: "Reload the page",
    href: here,
  })
}

// Covers the page and makes it inert at once; the dialog that explains it opens after so many milliseconds.
function lock({ title, message, by, action, href, explainAfter = 0 }) {
  over = true
  clearTimeout(retry)
  clearTimeout(watchdog)
  if ("locked" in document.body.dataset) return
  document.body.dataset.locked = ""
  showState("stopped")
  document.getElementById("ended-kept").hidden = !keepDrafts()
  setText("#ended-title", title)
  setText("#ended-message", message)
  setText("#ended-by", by ?? "")
  document.getElementById("ended-by").hidden = !by
  setText("#ended-action", action)
  document.getElementById("ended-action").href = href
  if (!explainAfter) return explain()
  for (const part of document.querySelectorAll("body > :not(.ended)")) part.inert = true
  explanation = setTimeout(explain, explainAfter)
}

function explain() {
  clearTimeout(explanation)
  const dialog = document.getElementById("ended")
  if (dialog.open) return
  dialog.oncancel = event => event.preventDefault()
  // A second Escape closes a dialog whatever its cancel event is told.
  dialog.onclose = () => dialog.showModal()
  dialog.showModal()
}

// Asks drafts.js to store what was typed. Returns whether there is a draft for a form of this page.
function keepDrafts() {
  return !dispatchEvent(new Event("draft:keep", { cancelable: true }))
}

// Small helpers, and what the browser says

function element(name, ...children) {
  const made = document.createElement(name)
  made.append(...children)
  return made
}

function setText(selector, text) {
  for (const found of document.querySelectorAll(selector)) found.textContent = text
}

addEventListener("submit", event => {
  if (event.defaultPrevented) return
  submittedAt = Date.now()
  if (!("download" in event.target.dataset)) leavingAt = submittedAt
})

addEventListener("offline", () => {
  if (!over && !stopped) showState("offline")
})

// After a change of network the old connection may seem open for minutes.
addEventListener("online", () => {
  disconnect()
  if (!over && !stopped) showState("reconnecting")
  reconnectNow()
})

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return
  reconnectNow()
  freshen()
})

// An open popover is in the browser's top layer, where the layout of the other width does not apply.
matchMedia("(min-width: 60rem)").addEventListener("change", () => {
  for (const menu of document.querySelectorAll("[popover]:popover-open")) menu.hidePopover()
})

addEventListener("pagehide", disconnect)

addEventListener("pageshow", async event => {
  if (!event.persisted) return
  if (over) {
    // Timers stand still in the back/forward cache, also the one that opens the dialog.
    explain()
    location.assign(here)
    return
  }
  if (!stopped) showState("reconnecting")
  if (await stillMe()) reconnectNow()
})
