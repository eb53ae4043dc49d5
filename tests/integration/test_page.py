"""The status page in a real browser, on a real admin server, of a gateway that is pretended."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tcpgw.admin import events
from tests.support.admin import TOKEN, Pretended, UnknownEndpointError, alert, served, settings
from tests.support.page import SICK, Complaints, calm, charts, chromium, many, pictures, troubled

Need = Callable[[str], str]
NARROW = {"width": 360, "height": 780}
WIDE = {"width": 1400, "height": 900}

# Milliseconds that the page did nothing else for, at most, within three seconds.
_LONGEST_PAUSE = """async () => {
    const end = performance.now() + 3000;
    let longest = 0;
    for (let last = performance.now(); last < end; ) {
        await new Promise((resolve) => setTimeout(resolve, 10));
        longest = Math.max(longest, performance.now() - last);
        last = performance.now();
    }
    return longest;
}"""


@pytest.fixture
async def browser(need: Need) -> AsyncIterator[Browser]:
    async with chromium(need("chromium")) as browser:
        yield browser


@pytest.fixture
def source() -> Pretended:
    source = Pretended(calm())
    source.history = charts(calm())
    return source


async def opened(browser: Browser, base: str, **context: object) -> tuple[Page, Complaints]:
    page = await (await browser.new_context(**context)).new_page()  # type: ignore[arg-type]
    complaints = Complaints(page)
    await page.goto(base)
    return page, complaints


async def logged_in(browser: Browser, base: str, **context: object) -> tuple[Page, Complaints]:
    page, complaints = await opened(browser, base, **context)
    await page.get_by_label("Token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#board")).to_be_visible()
    return page, complaints


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what it looks at says nothing by itself
            await asyncio.sleep(0.02)


# ---- what is seen ----


async def test_what_goes_on_is_seen_as_it_happens(browser: Browser, source: Pretended) -> None:
    """An endpoint that falls sick is said to be so, with the reason, above the others; then an alert is."""
    async with served(source) as base:
        page, complaints = await opened(browser, base)
        endpoints = page.locator("tbody[data-f=endpoints]").first.locator("tr")
        await expect(endpoints).to_have_count(4)
        await expect(endpoints.first).to_contain_text("10.0.1.11:8080")
        await expect(page.locator("#rate")).to_have_text("812/s")
        await expect(page.locator("#alerts-count")).to_have_text("0")

        shown = calm(alerts=[alert("usable_endpoints", {"service": "ranker"}, summary="ranker has 3 of 4")])
        shown["services"][0]["endpoints"][2] |= {"state": "unhealthy", "why": "no connection in 1 s"}
        source.shown = shown
        await expect(endpoints.first).to_contain_text(SICK)
        await expect(endpoints.first).to_contain_text("unhealthy")
        await expect(endpoints.first).to_contain_text("no connection in 1 s")
        await expect(page.locator("#alerts")).to_contain_text("ranker has 3 of 4")
        await expect(page.locator("#announcer")).to_have_text("firing: ranker has 3 of 4")
        await expect(page).to_have_title("(1) tcpgw")
        assert complaints.all == []


async def test_an_unchanged_answer_is_an_answer(browser: Browser, source: Pretended) -> None:
    """How old the list is and when discovery answered last are two things; "never" is since the start."""
    shown = calm()
    shown["services"][0] |= {"snapshot": {"version": 17, "taken_at": shown["at"] - 4000, "age": 4000.0}}
    shown["services"][0]["discovery"] |= {"answered_at": shown["at"] - 10}
    shown["services"][1]["discovery"] |= {"answered_at": None}
    source.shown = shown
    async with served(source) as base:
        page, _ = await opened(browser, base)
        rows = page.locator("#discovery tr")
        await expect(rows.nth(0)).to_contain_text("10 s ago")
        await expect(rows.nth(1)).to_contain_text("never")
        card = page.locator(".service").first
        await expect(card).to_contain_text("snapshot 17, unchanged for 1 h 6 min")


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("light", {"viewport": WIDE}),
        ("dark", {"viewport": WIDE, "color_scheme": "dark"}),
        ("between", {"viewport": {"width": 900, "height": 900}}),
        ("narrow", {"viewport": NARROW}),
        ("narrow-dark", {"viewport": NARROW, "color_scheme": "dark"}),
    ],
)
async def test_it_fits(browser: Browser, tmp_path: Path, name: str, context: dict[str, object]) -> None:
    """Whatever is wrong and however narrow the screen, nothing runs out of it; dark where asked for."""
    source = Pretended(troubled())
    source.history = charts(troubled())
    async with served(source, settings(token=TOKEN)) as base:
        page, complaints = await logged_in(browser, base, **context)
        await expect(page.locator(".service")).to_have_count(2)
        await page.wait_for_timeout(500)  # bars grow into their length
        await page.screenshot(path=pictures(tmp_path) / f"{name}.png", full_page=True)
        width = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == ("dark" in name)
        await page.locator("button[data-act=weight]").first.click()
        await page.screenshot(path=pictures(tmp_path) / f"{name}-dialog.png")
        assert complaints.all == []


async def test_hints_name_commands_as_code(browser: Browser, source: Pretended) -> None:
    """What stands in backticks; one alone is shown as it is, and what is refused has them too."""
    hint = "`tcpgw status` has the reasons: a ` alone is <none>."
    source.shown = calm(alerts=[alert("error_rate", {"service": "ranker"}, hint=hint)])
    async with served(source, settings(token=TOKEN)) as base:
        page, complaints = await logged_in(browser, base)
        shown = page.locator("#alerts [data-f=hint]")
        await expect(shown).to_have_text("tcpgw status has the reasons: a ` alone is <none>.")
        await expect(shown.locator("code")).to_have_text("tcpgw status")
        source.error = UnknownEndpointError("the last one. `tcpgw drain --force` does it")
        await page.get_by_role("button", name=f"Drain {SICK}").click()
        await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
        await expect(page.locator("#dialog-error code")).to_have_text("tcpgw drain --force")
        assert [one for one in complaints.all if "409" not in one] == []


async def test_times_are_called_what_they_are(browser: Browser, source: Pretended) -> None:
    """Of a service whose requests are not seen they are those to connect, to who only listens as well."""
    shown = calm()
    shown["services"][1] |= {"latency_of": "connect", "p50": 0.0004}
    source.shown = shown
    async with served(source) as base:
        page, complaints = await opened(browser, base)
        seen, unseen = (page.locator(".service").nth(place).locator("figure").last for place in (0, 1))
        await expect(seen.locator("figcaption")).to_contain_text("Latency")
        await expect(unseen.locator("figcaption")).to_contain_text("Connect time")
        await expect(unseen.get_by_text("Connect time")).to_have_attribute("title", re.compile("instance"))
        label = re.compile("^Connect time of the last 5 minutes; now p50 400 µs")
        await expect(unseen.get_by_role("img")).to_have_attribute("aria-label", label)
        assert complaints.all == []


async def test_what_is_over_is_told_as_past(browser: Browser, source: Pretended) -> None:
    """An alert fires for a while, and was resolved a while ago."""
    firing, over = (alert(name, {}, state=name) for name in ("firing", "resolved"))
    source.shown = calm(alerts=[firing, over])
    async with served(source) as base:
        page, _ = await opened(browser, base)
        about = page.locator("#alerts [data-f=about]")
        await expect(about.nth(0)).to_have_text(re.compile(r"firing · for 1 min 3\d s"))
        await expect(about.nth(1)).to_have_text(re.compile(r"resolved · 1 min 3\d s ago"))


async def test_what_gateways_say_is_no_markup(browser: Browser, source: Pretended) -> None:
    """A reason with tags in it is shown with its tags."""
    shown = calm()
    nasty = "<img src=x onerror=alert(1)><b>bold</b>"
    shown["services"][0]["endpoints"][0] |= {"state": "unhealthy", "why": nasty}
    source.shown = shown
    async with served(source) as base:
        page, complaints = await opened(browser, base)
        await expect(page.locator("td.why").first).to_have_text(nasty)
        assert complaints.all == []


async def test_a_thousand_endpoints(browser: Browser, source: Pretended) -> None:
    """The sick ones are shown first, the rest when asked for or by the filter; the page stays quick."""
    source.shown = many(1000)
    async with served(source) as base:
        page, complaints = await opened(browser, base)
        rows = page.locator("tbody[data-f=endpoints] tr")
        await expect(rows).to_have_count(50)
        await expect(rows.first).to_contain_text("unhealthy")
        await page.get_by_role("searchbox").fill("10.1.2.7")
        await expect(rows).to_have_count(11)
        await page.get_by_role("searchbox").fill("")
        await page.get_by_role("button", name="Show all 1,000").click()
        await expect(rows).to_have_count(1000)
        # Two or three views are drawn meanwhile, on a machine that does other things too.
        assert await page.evaluate(_LONGEST_PAUSE) < 1000
        await page.get_by_role("button", name="Show fewer").click()
        await expect(rows).to_have_count(50)
        assert complaints.all == []


# ---- what is done ----


async def test_an_endpoint_is_drained_by_its_button(browser: Browser, source: Pretended) -> None:
    """After a question; what the gateway says of it is shown, and then there is a button for the way back."""
    async with served(source, settings(token=TOKEN)) as base:
        page, complaints = await logged_in(browser, base)
        await page.get_by_role("button", name=f"Drain {SICK}").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text(f"Drain {SICK}?")
        await expect(dialog).to_contain_text("of rpc listeners that take more than 30 s are cut")
        await dialog.get_by_role("button", name="Cancel").click()
        assert source.done == []
        await page.get_by_role("button", name=f"Drain {SICK}").click()
        await dialog.get_by_role("button", name="Drain").click()
        await until(lambda: source.done)
        assert source.done == [("drain", SICK, "ranker")]
        await expect(dialog).to_be_hidden()
        await expect(page.locator("#toast")).to_have_text(f"{SICK} gets nothing new")
        shown = calm()
        shown["services"][0]["endpoints"][2] |= {"state": "draining", "weight": 0, "override": "drained"}
        source.shown = shown
        await page.get_by_role("button", name=f"Undrain {SICK}").click()
        await dialog.get_by_role("button", name="Give it back").click()
        await until(lambda: source.done[1:] == [("undrain", SICK, "ranker")])
        assert complaints.all == []


async def test_a_weight_is_reset_by_its_button(browser: Browser, source: Pretended) -> None:
    """To discovery's, which is said before; one that is drained is offered that weight, as 0 is none."""
    shown = calm()
    weighed, drained = shown["services"][0]["endpoints"][1:3]
    weighed |= {"weight": 5, "given_weight": 10, "override": "weight"}
    drained |= {"state": "draining", "weight": 0, "given_weight": 3, "override": "drained"}
    source.shown = shown
    async with served(source, settings(token=TOKEN)) as base:
        page, complaints = await logged_in(browser, base)
        dialog = page.get_by_role("dialog")
        await page.get_by_role("button", name=f"Reset {weighed['endpoint']}").click()
        await expect(dialog).to_contain_text("discovery says, 10")
        await dialog.get_by_role("button", name="Reset").click()
        await until(lambda: source.done == [("weight", weighed["endpoint"], None, "ranker")])
        await expect(page.locator("#toast")).to_contain_text("weight of discovery again")

        await page.get_by_role("button", name=f"Weight of {SICK}").click()
        await expect(dialog.get_by_label("Weight")).to_have_value("3")
        await expect(dialog).to_contain_text("has it when it is undrained")
        await dialog.get_by_role("button", name="Cancel").click()
        await page.get_by_role("button", name=f"Undrain {SICK}").click()
        await expect(dialog).to_contain_text("given by hand")
        assert complaints.all == []


async def test_by_keyboard_alone(browser: Browser, source: Pretended) -> None:
    """Tab leads to each button, its focus is seen and survives views; Enter asks, and Enter confirms."""
    async with served(source, settings(token=TOKEN)) as base:
        page, _ = await logged_in(browser, base)
        name = f"Drain {SICK}"
        for _ in range(60):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.ariaLabel") == name:
                break
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        shown = calm()
        shown["services"][0]["endpoints"][3] |= {"state": "unhealthy", "why": "refused"}
        source.shown = shown
        await expect(page.locator("td.why", has_text="refused")).to_be_visible()
        assert await page.evaluate("document.activeElement.ariaLabel") == name
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Enter")
        await until(lambda: source.done)
        assert source.done == [("drain", SICK, "ranker")]
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert await page.evaluate("document.activeElement.ariaLabel") == name
        await page.keyboard.press("Enter")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_other_actions(browser: Browser, source: Pretended) -> None:
    """A weight, a silence with its reason and its end, a reload that tells what changed."""
    known = alert("denials", {"listener": "predict"}, summary="many are denied")
    source.shown = calm(alerts=[known])
    async with served(source, settings(token=TOKEN)) as base:
        page, complaints = await logged_in(browser, base)
        dialog = page.get_by_role("dialog")
        await page.get_by_role("button", name=f"Weight of {SICK}").click()
        for refused in ("0", "70000"):
            await dialog.get_by_label("Weight").fill(refused)
            await dialog.get_by_role("button", name="Set weight").click()
            await expect(dialog).to_be_visible()
            assert source.done == []
        await dialog.get_by_label("Weight").fill("7")
        await page.keyboard.press("Enter")
        await until(lambda: source.done == [("weight", SICK, 7, "ranker")])
        await expect(dialog).to_be_hidden()

        await page.get_by_role("button", name="Silence many are denied").click()
        await dialog.get_by_label("For", exact=True).select_option("4 hours")
        await dialog.get_by_label("Why").fill("a scan we know")
        await dialog.get_by_role("button", name="Silence").click()
        silence = ("silence", "denials", {"listener": "predict"}, 14400, "a scan we know")
        await until(lambda: source.done[1:] == [silence])
        source.shown = calm(alerts=[known | {"silenced_until": time.time() + 9000}])
        await page.get_by_role("button", name="Unsilence many are denied").click()
        await dialog.get_by_role("button", name="Unsilence").click()
        await until(lambda: source.done[2:] == [("unsilence", "denials", {"listener": "predict"})])
        await expect(dialog).to_be_hidden()

        await page.get_by_role("button", name="Reload configuration").click()
        await dialog.get_by_role("button", name="Reload").click()
        await expect(dialog).to_contain_text("gateway.drain: 30 -> 5")
        await dialog.get_by_role("button", name="Close").click()
        assert complaints.all == []


async def test_silences_are_listed_and_ended(browser: Browser, source: Pretended) -> None:
    """Also those that are wider than one alert: the alert's own button says that it does not end them."""
    known = alert("denials", {"listener": "predict"}, summary="many are denied")
    wide = {"alert": "*", "labels": {}, "until": time.time() + 9000, "comment": "moving house"}
    source.shown = calm(alerts=[known | {"silenced_until": wide["until"]}], silences=[wide])
    async with served(source, settings(token=TOKEN)) as base:
        page, complaints = await logged_in(browser, base)
        dialog = page.get_by_role("dialog")
        await expect(page.locator("#silences")).to_contain_text("moving house")
        source.ended = 0
        await page.get_by_role("button", name="Unsilence many are denied").click()
        await dialog.get_by_role("button", name="Unsilence").click()
        await expect(page.locator("#dialog-error")).to_contain_text("end the wider one")
        await dialog.get_by_role("button", name="Cancel").click()
        source.ended = 1
        await page.get_by_role("button", name="End the silence of All alerts").click()
        await dialog.get_by_role("button", name="End it").click()
        await expect(page.locator("#toast")).to_contain_text("has ended")
        assert source.done[1:] == [("unsilence", "*", {})]
        source.shown = calm()
        await expect(page.locator("#silences li")).to_have_count(0)
        assert complaints.all == []


async def test_what_the_gateway_refuses_is_shown(browser: Browser, source: Pretended) -> None:
    """The dialog stays, with the reason."""
    async with served(source, settings(token=TOKEN)) as base:
        page, _ = await logged_in(browser, base)
        source.error = RuntimeError()
        await page.get_by_role("button", name="Reload configuration").click()
        await page.get_by_role("dialog").get_by_role("button", name="Reload").click()
        await expect(page.locator("#dialog-error")).to_contain_text("its log has the details")
        await expect(page.get_by_role("dialog")).to_be_visible()


# ---- who ----


async def test_without_a_token_it_only_shows(browser: Browser, source: Pretended) -> None:
    """No button changes anything, and what would allow it is told."""
    async with served(source) as base:
        page, complaints = await opened(browser, base)
        await expect(page.locator("#hint")).to_contain_text("gateway.admin")
        await expect(page.locator("#read-only")).to_be_visible()
        await expect(page.get_by_role("row", name=SICK)).to_be_visible()
        for button in await page.get_by_role("button").all():
            assert await button.inner_text() in {"Show all", "Show fewer"}
        assert complaints.all == []


async def test_logging_in_and_out(browser: Browser, source: Pretended) -> None:
    """A wrong token is refused in words, the right one shows the board, and logging out hides it again."""
    async with served(source, settings(token=TOKEN)) as base:
        page, _ = await opened(browser, base)
        await expect(page.locator("#board")).to_be_hidden()
        await page.get_by_label("Token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#login-error")).to_contain_text("not the token")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("row", name=SICK)).to_be_visible()
        await page.reload()
        await expect(page.get_by_role("row", name=SICK)).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.locator("#login")).to_be_visible()
        assert await page.context.cookies() == []


# ---- lost and found ----


async def test_where_too_many_listen_it_asks(
    browser: Browser, source: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that gets no stream has its figures all the same."""
    monkeypatch.setattr(events, "MOST", 0)
    async with served(source) as base:
        page, _ = await opened(browser, base)
        await expect(page.get_by_role("row", name=SICK)).to_be_visible()
        source.shown = calm(version="0.7.0")
        await expect(page.locator("#version")).to_have_text("0.7.0")
        await expect(page.locator("#lost")).to_be_hidden()


async def test_a_lost_gateway_comes_back(browser: Browser, source: Pretended) -> None:
    """While it is gone the page says so and how old its figures are, and calls nothing ready; then it goes on
    by itself.
    """
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with served(source, sock=sock.dup()) as base:
            page, _ = await opened(browser, base)
            await expect(page.get_by_role("row", name=SICK)).to_be_visible()
            await expect(page.locator("#lost")).to_be_hidden()
        await expect(page.locator("#lost")).to_contain_text("Connection lost")
        await expect(page.locator("#state")).to_have_text("unknown")
        await expect(page.locator("#state")).to_have_attribute("data-state", "unknown")
        await expect(page.locator("#lost-age")).to_have_text(re.compile(r"Figures are [2-9] s old; trying"))
        await expect(page.get_by_role("row", name=SICK)).to_be_visible()
        source.shown = calm(version="0.7.0")
        async with served(source, sock=sock.dup()):
            await expect(page.locator("#version")).to_have_text("0.7.0", timeout=15_000)
            await expect(page.locator("#state")).to_have_text("ready")
            await expect(page.locator("#lost")).to_be_hidden()


async def test_a_session_that_ended_asks_for_the_token(browser: Browser, source: Pretended) -> None:
    """A restarted gateway knows no sessions: the page asks again instead of showing old figures."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with served(source, settings(token=TOKEN), sock.dup()) as base:
            page, _ = await logged_in(browser, base)
        async with served(source, settings(token=TOKEN), sock.dup()):
            await expect(page.locator("#login")).to_be_visible(timeout=15_000)
            await page.get_by_label("Token").fill(TOKEN)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("row", name=SICK)).to_be_visible()
