() => {
    // What only the browser can know: that the server is out of reach. And who reads messages aloud.
    const EVERY = 4000; // milliseconds between two looks
    const LOST = "The connection to the server is lost. What was trained until now may be gone: " +
        "an episode ends with its connection.";
    const BACK = "The server can be reached again, but your episode may have ended. Reload the " +
        "page to begin another.";
    const banner = document.createElement("div");
    banner.id = "desk-lost";
    banner.setAttribute("role", "alert");
    banner.hidden = true;
    const text = document.createElement("span");
    const reload = document.createElement("button");
    reload.textContent = "Reload";
    reload.onclick = () => location.reload();
    banner.append(text, reload);
    document.body.prepend(banner);
    let failures = 0;
    const look = async () => {
        try {
            const answer = await fetch(new URL("../health", location.href), { cache: "no-store" });
            if (!answer.ok) throw new Error();
            if (failures >= 2) text.textContent = BACK;
            failures = 0;
        } catch {
            failures += 1;
            if (failures < 2) return;
            text.textContent = LOST;
            banner.hidden = false;
        }
    };
    setInterval(look, EVERY);
    window.addEventListener("offline", () => { failures = 2; look(); });
    for (const note of document.querySelectorAll("[id^=desk-][id$=-note]"))
        note.setAttribute("aria-live", "polite");
}
