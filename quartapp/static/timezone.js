// Shows times in the browser's zone, and stores it as a cookie.
const { dataset } = document.documentElement
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
if (zone && zone !== dataset.zone) {
  document.cookie = dataset.zoneCookie.replace("%", zone)
  const day = { day: "numeric", month: "short", year: "numeric" }
  const time = { ...day, hour: "2-digit", minute: "2-digit" }
  for (const at of all("[data-shown]")) {
    const format = at.dataset.shown === "date" ? day : time
    at.textContent = new Date(at.dateTime).toLocaleString(locale, format)
  }
  first("#zone").textContent = zone
}
