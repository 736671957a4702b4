// Connects an open page to /ws: follows permissions, shows notifications, and locks the page when its session has ended.

const { session, user, username } = document.body.dataset
const here = document.body.dataset.here || location.pathname + location.search
const main = document.querySelector("main")
let countedTo = document.body.dataset.cursor // the newest notification that the badge counts
let unread = Number(document.querySelector("[data-unread]").textContent)

// The answer to a rejected POST is the page that holds its form. Show the URL of that page, which can be reloaded.
if ("refused" in document.body.dataset) history.replaceState(null, "", here)

let socket = null
let attempt = 0
let retry, watchdog, silence, stateText, dialogTimer
let submittedAt = 0 // when a form was submitted; Firefox then closes the socket, even if the answer is a download
let leavingAt = 0 // when a form was submitted whose answer replaces this page
let over = false // the session has ended or belongs to another page: never connect again
let stopped = false // the server and this script disagree about the protocol: never connect again
let version = Number(document.body.dataset.version)
let permissions = new Set(document.body.dataset.permissions.split(" ").filter(Boolean))
let pageRefused = !pageAllowed()
let cursor = sessionStorage.getItem(`cursor:${user}`) || countedTo
const received = new Set() // ids of messages that were handled

connect()

// The connection

function connect() {
  clearTimeout(retry)
  if (over || stopped || socket) return
  const url = new URL("/ws", location.href)
  url.protocol = url.protocol.replace("http", "ws")
  url.searchParams.set("page", location.pathname)
  if (cursor) url.searchParams.set("cursor", cursor)
  const topics = [...document.querySelectorAll("[data-topics]")].flatMap(part => part.dataset.topics.split(" "))
  url.searchParams.set("unread", unread)
  if (topics.length) url.searchParams.set("topics", [...new Set(topics)])
  const mine = (socket = new WebSocket(url))
  const begun = Date.now()
  mine.onmessage = event => socket === mine && receive(JSON.parse(event.data))
  mine.onclose = event => socket === mine && handleClose(event, Date.now() - begun)
}

function clearTimers() {
  for (const timer of [retry, watchdog, silence]) clearTimeout(timer)
}

function disconnect() {
  clearTimers()
  const old = socket
  socket = null
  old?.close()
}

async function handleClose({ code, reason }, lived) {
  socket = null
  clearTimers()
  if (over) return
  if (code === 4401) return lockWithReason()
  // The server did not accept a message of this script. Reconnecting would not help.
  if (code === 4400) return (stopped = true, showState("stopped"))
  showState("reconnecting")
  // A server may fail right after each handshake, so only a connection that lasted resets the back-off.
  if (code === 1012 || lived > 10_000) attempt = 0
  if (code === 1013) attempt = Math.max(attempt, 3)
  const justSubmitted = Date.now() - submittedAt < 10_000
  const longest = justSubmitted && attempt === 0 ? 0.3 : Math.min(30, 2 ** attempt)
  attempt++
  // A browser reports a rejected handshake and a lost connection as 1006. Ask the server which it was.
  if (code === 1006 && !(await mayReconnect())) return
  // A server that shuts down tells each page when to reconnect, so that they do not reconnect all at once.
  const delay = code === 1012 && Number(/in (\d+(\.\d+)?) s$/.exec(reason)?.[1])
  retry = setTimeout(connect, (delay || Math.random() * longest) * 1000)
}

// Returns { me }, or { ended } after the end of the session, or {} without an answer.
async function fetchCurrentSession() {
  try {
    // The header tells the server not to count this as use of the session, which would extend it.
    const headers = { "X-Background": "1" }
    const answer = await fetch("/api/me", { cache: "no-store", headers, signal: AbortSignal.timeout(10_000) })
    if (answer.status === 401) return { ended: (await answer.json().catch(() => null))?.ended ?? {} }
    if (answer.ok) return { me: await answer.json() }
  } catch {
    // No network.
  }
  return {}
}

// Returns whether to reconnect. Locks the page if its session has ended or another user is signed in.
async function mayReconnect() {
  const { me, ended } = await fetchCurrentSession()
  if (over) return false
  if (ended) lockEnded(ended)
  else if (me && (me.session !== session || me.username !== username)) lockForeign(me.username)
  return !over
}

// The server closed the socket with 4401. Lock the page, then fetch the reason if no session.ended message gave it.
async function lockWithReason() {
  lockEnded({})
  const { ended } = await fetchCurrentSession()
  if (ended?.session === session && ended.message) setText("#ended-message", ended.message)
}

function reconnectNow() {
  if (socket || over || stopped) return
  attempt = 0
  connect()
}

// Messages from the server

function receive(message) {
  const { type, id } = message
  // Silence is the only sign of a connection that was lost without a close, for example when a laptop was asleep.
  clearTimers()
  if (!over) {
    silence = setTimeout(showState, 30_000, "silent")
    watchdog = setTimeout(() => { disconnect(); connect() }, 90_000)
    showState("connected")
  }
  try {
    if (id === undefined || !received.has(id)) handlers[type]?.(message)
  } finally {
    if (id !== undefined) {
      received.add(id)
      send({ type: "ack", id })
    }
  }
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message))
}

const handlers = {
  hello(message) {
    if (message.user.id !== user || message.session !== session) return lockForeign(message.user.username)
    if (!cursor) rememberCursor(message.cursor)
    applyPermissions(message)
  },

  ping({ at }) {
    send({ type: "pong", at })
  },

  "permissions.changed"(message) {
    if (!applyPermissions(message)) return
    const gained = message.added?.length ? say("gained", { permissions: message.added.join(", ") }) : ""
    const lost = message.removed?.length ? say("lost", { permissions: message.removed.join(", ") }) : ""
    const by = message.by ? say("changedBy", message) : ""
    if (gained || lost) toast([gained, lost, by].filter(Boolean).join(" "))
  },

  "session.started"({ session: { device, ip } }) {
    toast(say("signIn", { device, ip }), { href: "/account/sessions", label: say("review") })
  },

  "session.ended"(message) {
    // If this page has just submitted a form (for example to sign out), the answer explains the end better than the
    // dialog does: the page is locked now, but the dialog waits for three seconds.
    lockEnded(message, Date.now() - leavingAt < 10_000 ? 3000 : 0)
  },

  // regions.js replaces the elements that show these topics.
  "topics.changed"({ topics }) {
    announce(topics)
  },

  notice({ id, text }) {
    if (!isLater(id, cursor)) return
    rememberCursor(id)
    if (isLater(id, countedTo)) showUnread(unread + 1)
    toast(text)
  },

  "notices.read"({ unread, cursor: to }) {
    // The message does not count notifications that have arrived since.
    showUnread(unread + Math.max(0, cursor - to))
    if (isLater(to, countedTo)) countedTo = to
  },
}

function isLater(id, than) {
  return BigInt(id) > BigInt(than || 0)
}

function rememberCursor(id) {
  cursor = id
  sessionStorage.setItem(`cursor:${user}`, id)
}

// Permissions

// Applies the roles and permissions of a message unless newer ones are known. Returns whether it did.
function applyPermissions(message) {
  if (message.version < version) return false
  version = message.version
  permissions = new Set(message.permissions)
  showAllowed()
  setText("[data-roles]", message.roles.join(", ") || "none")
  setText("[data-permission-list]", [...permissions].sort().join(", ") || "none")
  updatePage(message.by)
  return true
}

function showAllowed() {
  for (const part of document.querySelectorAll("[data-needs]:not(main)")) part.hidden = !mayAny(part.dataset.needs)
}

function mayAny(needs) {
  return needs.split(" ").some(permission => permissions.has(permission))
}

function pageAllowed() {
  return !main.dataset.needs || mayAny(main.dataset.needs)
}

// Hides the content of a page that the user may no longer see, and loads it again when they may.
function updatePage(by) {
  if (pageAllowed() === !pageRefused) return
  pageRefused = !pageRefused
  if (pageRefused) hidePage(by)
  else keepDrafts(), location.assign(here)
}

function hidePage(by) {
  const kept = keepDrafts()
  const forms = kept ? main.querySelectorAll("form[data-draft]") : []
  const needed = element("code", main.dataset.needs.replaceAll(" ", " / "))
  const [before, after] = say(by ? "removedBy" : "removed", { by, permission: "\n" }).split("\n")
  const words = element("p", before, needed, after)
  words.className = "lede"
  main.className = "message-page"
  main.replaceChildren(element("h1", say("refused")), words)
  for (const form of forms) {
    main.append(element("p", say("unsendable")), form)
    for (const button of form.querySelectorAll("button")) button.disabled = true
  }
  main.focus()
}

// Notifications

// Shows a message for 12 seconds.
function toast(text, { href, label } = {}) {
  const words = element("p", text)
  if (href) {
    const link = element("a", label)
    link.href = href
    words.append(" ", link)
  }
  const close = element("button", "×")
  close.type = "button"
  close.ariaLabel = say("dismiss")
  const box = element("div", words, close)
  box.className = "toast"
  close.onclick = () => box.remove()
  const region = document.getElementById("toasts")
  region.append(box)
  if (region.children.length > 4) region.firstElementChild.remove()
  dismissLater(box)
}

// Not while it has the pointer or the focus.
function dismissLater(box) {
  setTimeout(() => (box.matches(":hover, :focus-within") ? dismissLater(box) : box.remove()), 12_000)
}

function showUnread(count) {
  unread = count
  setText("[data-unread]", unread)
  for (const part of document.querySelectorAll("[data-unread], [data-unread-words]")) part.hidden = !unread
  announce(["notices"])
}

function announce(topics) {
  dispatchEvent(new CustomEvent("topics:changed", { detail: topics }))
}

function showState(state) {
  const live = document.getElementById("live")
  live.hidden = false
  if (state === "reconnecting" && !navigator.onLine) state = "offline"
  const before = live.dataset.state
  if (before === state) return
  live.dataset.state = state
  live.title = say(state) ?? ""
  clearTimeout(stateText)
  const text = state === "connected" ? "" : say(state) ?? ""
  // A restart takes a second or two. Show nothing for so short a time.
  const wait = state === "reconnecting" && before !== "offline" ? 2000 : 0
  stateText = setTimeout(setText, wait, ".live-text", text)
}

// Locking the page

function lockEnded({ session: ended = session, reason, message, by, at }, explainAfter = 0) {
  const other = ended !== session // the reason belongs to a different session
  const when = at ? sayTime(at) : ""
  lock({
    title: say(reason === "signed_out" ? "signedOut" : "ended"),
    message: (!other && message) || say("over"),
    by: other ? "" : [by && by !== username && say("by", { by }), when].filter(Boolean).join(", "),
    action: say("again"),
    href: `/login?${new URLSearchParams({ ended: session, next: here })}`,
    explainAfter,
  })
}

// Locks the page because this browser now has a different session, of the user `name`.
function lockForeign(name) {
  disconnect()
  lock({
    title: say("expired"),
    message: say(name === username ? "sameUser" : "otherUser", { name, username }),
    action: say("reload"),
    href: here,
  })
}

// Makes the page inert and never connects again. The dialog opens after `explainAfter` milliseconds.
function lock({ title, message, by, action, href, explainAfter = 0 }) {
  over = true
  clearTimers()
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
  if (!explainAfter) return openDialog()
  for (const part of document.querySelectorAll("body > :not(.ended)")) part.inert = true
  dialogTimer = setTimeout(openDialog, explainAfter)
}

function openDialog() {
  clearTimeout(dialogTimer)
  const dialog = document.getElementById("ended")
  if (dialog.open) return
  dialog.oncancel = event => event.preventDefault()
  // Browsers close a dialog on the second Escape even if the cancel event is prevented.
  dialog.onclose = () => dialog.showModal()
  dialog.showModal()
}

// Asks drafts.js to store unsaved text. Returns whether there is a draft for a form of this page.
function keepDrafts() {
  return !dispatchEvent(new Event("draft:keep", { cancelable: true }))
}

// Helpers, and events of the browser

function element(name, ...children) {
  const created = document.createElement(name)
  created.append(...children)
  return created
}

function setText(selector, text) {
  for (const found of document.querySelectorAll(selector)) found.textContent = text
}

addEventListener("submit", event => {
  if (event.defaultPrevented) return
  submittedAt = Date.now()
  if (!("download" in event.target.dataset)) leavingAt = submittedAt
})

addEventListener("topics:shown", showAllowed)

addEventListener("offline", () => {
  if (!over && !stopped) showState("offline")
})

// After a change of network, a dead connection can look open for minutes.
addEventListener("online", () => {
  disconnect()
  if (!over && !stopped) showState("reconnecting")
  reconnectNow()
})

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) reconnectNow()
})

// An open popover is in the top layer, where the layout for the other width does not apply. Close it.
matchMedia("(min-width: 60rem)").addEventListener("change", () => {
  for (const menu of document.querySelectorAll("[popover]:popover-open")) menu.hidePopover()
})

addEventListener("pagehide", disconnect)

addEventListener("pageshow", async event => {
  if (!event.persisted) return
  if (over) {
    // Timers do not run in the back/forward cache, so the dialog may not have opened.
    openDialog()
    location.assign(here)
    return
  }
  if (!stopped) showState("reconnecting")
  if (await mayReconnect()) reconnectNow()
})
