"""The page of `jaxlb demo`: what it says, and how it looks in a browser."""

import itertools
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import runs
from jaxlb.environments import Spec
from jaxlb.learn import TRAINERS
from jaxlb.report import data, html
from jaxlb.threads import threads
from jaxlb.trained import describe

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCENARIOS = ("heavy-tail", "stale")
TRAINED = {"dqn": "heavy-tail", "predictor": "stale"}


def section(scenario, key):
    env, params = jaxlb.make(scenario)
    # Stand-ins for what was trained: the page only needs their names.
    chosen = {name: jaxlb.scheduler(name) for name in ("rr", "lwr", "oracle")}
    chosen |= {"dqn": jaxlb.scheduler("jsq"), "predictor": jaxlb.scheduler("greedy")}
    table = jaxlb.compare(env, params, chosen, key, num_lanes=24, num_tasks=200, warmup=50)
    command = f"jaxlb compare --scenario {scenario}"
    shown = table, env, params, *replayed(env, params, chosen, key)
    return table, html.section(*shown, command, TRAINED)


def replayed(env, params, schedulers, key):
    with threads() as pool:
        tasks, outcomes = data.replayed(env, params, schedulers, key, pool)
        return tasks, {name: outcome.result() for name, outcome in outcomes.items()}


def changed(row, **figures):
    return replace(row, figures=row.figures | figures)


@pytest.fixture(scope="module")
def sections():
    return [section(scenario, jax.random.key(0)) for scenario in SCENARIOS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = TRAINERS["predictor"]
    spec = Spec("stale", {})
    training = describe(*spec.make(), trainer.config(), [0], spec)
    run = runs.Run(tmp_path_factory.mktemp("runs") / "predictor", training)
    run.directory.mkdir()
    errors = [0.9, 0.4, None, 0.5]
    run.log(
        [
            {"iteration": 10 * index, "seed": 0, "held_out_error": error, "objective": error and -error}
            for index, error in enumerate(errors, start=1)
        ]
    )
    return html.training(run, "jaxlb train predictor --scenario stale", 12.34)


@pytest.fixture(scope="module")
def report(sections, trained):
    report = {
        "command": "jaxlb demo </script><b>",  # whatever a folder is called
        "versions": {"jaxlb": "1"},
        "trainings": [trained],
        "scenarios": [told for _, told in sections],
        "seconds": 1.5,
    }
    return json.loads(json.dumps(report))


def test_a_training_is_told_with_its_best_iteration(trained):
    assert (trained["name"], trained["best"], trained["seconds"]) == ("predictor", 20, 12.3)
    assert trained["iterations"] == [10, 20, 30, 40]
    assert [curve["values"] for curve in trained["curves"]] == [[0.9, 0.4, None, 0.5]]


def test_a_section_has_the_rows_and_the_tails_of_the_comparison(sections):
    for table, told in sections:
        assert [row["kind"] for row in told["schedulers"]] == ["rule", "rule", "oracle", "learned", "learned"]
        for row in table.schedulers:
            mine = next(one for one in told["schedulers"] if one["name"] == row.name)
            assert mine["mean_completion"] == row.mean_completion
            time, longer = np.array(told["tails"]["time"]), np.array(told["tails"]["longer"][row.name])
            assert 50 <= len(time) <= 160 and np.all(np.diff(time) > 0) and np.all(np.diff(longer) <= 0)
            median = np.exp(np.interp(-0.5, -longer, np.log(time)))
            np.testing.assert_allclose(median, row.p50_completion, rtol=0.06)
        json.dumps(told, allow_nan=False)


def test_choices_and_slowdowns_by_size_are_counted(key):
    env, params = jaxlb.make("heavy-tail")
    tasks, outcomes = replayed(env, params, {"rr": jaxlb.scheduler("rr"), "one": only_the_first()}, key)
    edges, count, share, slowdown = data.by_size(params, tasks, outcomes)
    assert count.sum() == tasks.size.size  # those below the first edge are in the first bin
    np.testing.assert_allclose(share["one"][0], count > 0)
    np.testing.assert_allclose((share["rr"] * count).sum(1) / count.sum(), 0.25)
    size, outcome = np.asarray(tasks.size), outcomes["rr"]
    assert edges[0] == pytest.approx(np.quantile(size, 0.001)) and edges[-1] > size.max()
    inside = (size >= edges[3]) & (size < edges[4])
    np.testing.assert_allclose(
        slowdown["rr"][3], (np.asarray(outcome.completion) / size)[inside].mean(), 1e-5
    )
    np.testing.assert_allclose(share["rr"][2, 3], (np.asarray(outcome.action) == 2)[inside].mean())


def only_the_first():
    return jaxlb.Scheduler(
        name="one",
        variables=(),
        start=lambda env, params, lanes: (),
        act=lambda variables, memory, observation, key: (observation.priority * 0, memory),
    )


@pytest.mark.parametrize(
    ("mine", "rule", "outcome", "words"),
    [
        ((0.10, (0.09, 0.11)), (0.20, (0.19, 0.21)), "better", "dqn (10.00 %) beats the best rule, lwr (20"),
        ((0.20, (0.18, 0.22)), (0.21, (0.19, 0.23)), "level", "dqn (20.00 %) is level with the best rule"),
        ((0.30, (0.29, 0.31)), (0.20, (0.19, 0.21)), "worse", "dqn (30.00 %) loses to the best rule"),
        ((0.10, None), (0.20, None), "level", "is level with"),
    ],
)  # fmt: skip
def test_the_verdict_says_who_wins(sections, mine, rule, outcome, words):
    named = {row.name: row for row in sections[0][0].schedulers}
    values = {"dqn": mine, "lwr": rule, "rr": (0.9, (0.8, 1.0)), "oracle": (0.01, (0.0, 0.02)),
              "predictor": (0.05, (0.04, 0.06))}  # fmt: skip
    rows = [
        changed(named[name], sla_violation_rate=rate, sla_violation_rate_ci=ci)
        for name, (rate, ci) in values.items()
    ]
    found = html.verdict("sla_violation_rate", rows, TRAINED, "heavy-tail")
    assert (found["learned"], found["rule"], found["outcome"], found["best"]) == (
        "dqn",
        "lwr",
        outcome,
        "predictor",
    )
    assert words in found["text"] and "best of all is predictor, trained on stale (5.00 %)" in found["text"]
    # A rule that wins is told of, and nothing is said of another winner.
    found = html.verdict("sla_violation_rate", rows[:-1], {"dqn": "heavy-tail"}, "heavy-tail")
    assert found["best"] == ("lwr" if outcome == "worse" else "dqn") and "best of all" not in found["text"]
    # What was trained for any system counts as trained here.
    found = html.verdict("sla_violation_rate", rows, TRAINED | {"predictor": html.ANYWHERE}, "heavy-tail")
    assert found["learned"] == "predictor"


def test_the_page_is_one_file_that_holds_its_numbers(report):
    page = html.page(report)
    inside = page.split('<script type="application/json" id="report">')[1].split("</script>")[0]
    assert json.loads(inside) == report
    assert page.count("http") == page.count("http-equiv") + page.count("http://www.w3.org/2000/svg")
    assert "src=" not in page and "@import" not in page and "url(" not in page


# In a browser.


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage",
        "disable-background-networking", "disable-component-update", "disable-sync",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def browse(browser, report, tmp_path_factory):
    """Opens the page at a width and in a theme."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.page(report), encoding="utf-8")

    def opened(width=1280, scheme="light"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        theme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", theme)
        browser.get(path.as_uri())
        return browser

    return opened


CUT = """
const cut = [];
for (const text of document.querySelectorAll("svg text")) {
  const box = text.getBoundingClientRect(), room = text.ownerSVGElement.getBoundingClientRect();
  const beside = box.left < room.left - 1 || box.right > room.right + 1;
  if (beside || box.top < room.top - 1 || box.bottom > room.bottom + 1) cut.push(text.textContent);
}
return cut;
"""


@pytest.mark.parametrize(("width", "scheme"), list(itertools.product((360, 768, 1280), ("light", "dark"))))
def test_nothing_overflows_or_is_cut_and_nothing_is_complained_of_or_asked_for(browse, width, scheme):
    driver = browse(width, scheme)
    client, scroll = driver.execute_script(
        "const e = document.documentElement; return [e.clientWidth, e.scrollWidth]"
    )
    assert scroll <= client <= width and client > width - 20  # a scrollbar's breadth
    assert driver.execute_script(CUT) == []
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith("file:") for url in asked) and asked
    dark = (
        driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        != "rgb(255, 255, 255)"
    )
    assert dark == (scheme == "dark")


def number(text):
    return float(text.replace(",", "").split(" ")[0])


def test_the_numbers_on_the_page_are_those_of_the_json(browse, report):
    driver = browse()
    cells = driver.execute_script(
        """return [...document.querySelectorAll("td[data-key]")].map((cell) => [
             cell.closest("table").getAttribute("aria-label").split(":")[0],
             cell.closest("tr").dataset.scheduler, cell.dataset.key, cell.dataset.value, cell.textContent])"""
    )
    rows = {(told["name"], row["name"]): row for told in report["scenarios"] for row in told["schedulers"]}
    scales = {"sla_violation_rate": 100, "oracle_agreement": 100}
    assert len(cells) > 80
    for scenario, scheduler, field, value, text in cells:
        row = rows[scenario, scheduler]
        assert float(value) == row[field]
        shown = scales.get(field, 1) * row[field]
        decimals = 3 if abs(shown) < 10 else 2 if abs(shown) < 100 else 1
        assert number(text) == pytest.approx(shown, abs=0.501 * 10**-decimals)
        interval = row[f"{field}_ci"]
        whole = ("oracle_agreement", "mean_reward", *(f"p{p}_completion" for p in (50, 95, 99)))
        assert ("±" in text) == (interval is not None and field not in whole)
        if "±" in text:
            half = scales.get(field, 1) * (interval[1] - interval[0]) / 2
            assert number(text.split("±")[1]) == pytest.approx(half, abs=0.501 * 10**-decimals)
    bars = driver.execute_script(
        """return [...document.querySelectorAll("[data-headline]")].map((text) =>
             [...text.dataset.headline.split(" "), text.dataset.value, text.textContent])"""
    )
    assert {(scenario, field) for scenario, _, field, _, _ in bars} == set(
        itertools.product(SCENARIOS, html.FIGURES)
    )
    for scenario, scheduler, field, value, text in bars:
        assert float(value) == rows[scenario, scheduler][field]
        assert number(text) == pytest.approx(scales.get(field, 1) * float(value), rel=1e-3, abs=6e-4)
    verdicts = [verdict["outcome"] for told in report["scenarios"] for verdict in told["verdicts"]]
    lead = driver.execute_script("return document.getElementById('lead').textContent")
    better, level, worse = (verdicts.count(outcome) for outcome in ("better", "level", "worse"))
    assert f"beats the best of 2 rules in {better} of 4 cases" in lead
    assert f"level with it in {level}, and loses in {worse}" in lead


def test_every_figure_has_its_numbers_and_its_command(browse, report):
    driver = browse()
    figures = driver.execute_script(
        """return [...document.querySelectorAll("figure")].map((figure) => [
             figure.querySelector("h3").textContent, figure.querySelectorAll("table").length,
             figure.querySelector(".command code").textContent])"""
    )
    commands = {report["command"], *(part["command"] for part in report["trainings"] + report["scenarios"])}
    assert {command for _, _, command in figures} == commands
    # The headline's are in the tables below.
    assert all(tables == 1 for title, tables, _ in figures if title not in SCENARIOS)
    labels = driver.execute_script(
        """return [...document.querySelectorAll("main svg[role=img]")].map(
             (svg) => svg.getAttribute("aria-label"))"""
    )
    assert len(labels) == 4 + 1 + 2 * (3 + 5) and all(labels)


def test_schedulers_can_be_hidden(browse):
    driver = browse()
    count = """return ['[data-of="rr"]', 'tr[data-scheduler="rr"]:not([hidden])'].map(
                 (which) => document.querySelectorAll(which).length)"""
    lines, rows = driver.execute_script(count)
    assert lines >= 6 and rows >= 4
    chip = driver.find_element("css selector", "[data-chip=rr]")
    chip.click()
    assert driver.execute_script(count) == [0, 0] and chip.get_attribute("aria-pressed") == "false"
    chip.click()
    assert driver.execute_script(count) == [lines, rows] and chip.get_attribute("aria-pressed") == "true"


def test_hovering_tells_the_numbers_of_the_nearest_point(browse, report):
    from selenium.webdriver import ActionChains

    driver = browse()
    # The first front: each scheduler is a marker there.
    plots = driver.find_elements("css selector", "svg[aria-label^='heavy-tail: rr completion']")
    marker = plots[0].find_element("css selector", "g[data-of=lwr] rect")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", marker)
    ActionChains(driver).move_to_element(marker).perform()
    tip = driver.find_element("css selector", "#tip")
    row = next(row for row in report["scenarios"][0]["schedulers"] if row["name"] == "lwr")
    name, completion, violations = tip.text.splitlines()
    assert name == "lwr"
    assert number(completion.split(": ")[1]) == pytest.approx(row["mean_completion"], rel=1e-3)
    assert number(violations.split(": ")[1]) == pytest.approx(100 * row["sla_violation_rate"], rel=1e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_from_the_background(browse, scheme):
    driver = browse(scheme=scheme)
    colours = driver.execute_script(
        """const found = {}, probe = document.body.appendChild(document.createElement("span"));
           for (const name of document.styleSheets[0].cssRules[0].style) if (name.startsWith("--")) {
             probe.style.color = `var(${name})`;
             found[name] = getComputedStyle(probe).color;
           }
           return found"""
    )

    def luminance(colour):
        part = np.array([int(x) for x in colour.removeprefix("rgb(").removesuffix(")").split(",")]) / 255
        return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    def contrast(a, b):
        high, low = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    drawn = [name for name in colours if name.startswith(("--learned", "--rule"))]
    assert len(drawn) == 11
    for background in ("--page", "--card"):
        for text in ("--ink", "--soft", "--accent", "--learned0", "--learned2"):
            assert contrast(text, background) >= 4.5, (text, background)
        for line in drawn:
            assert contrast(line, background) >= 3, (line, background)


def test_the_page_says_what_has_not_settled(sections):
    rows = {row.name: row for row in sections[0][0].schedulers}
    hint = "processor 3 is busy all the time"
    grows = changed(rows["rr"], sla_violation_rate=0.0, mean_completion=0.1)
    grows = replace(grows, stationary=False, hint=hint)
    table = [grows, rows["lwr"], rows["oracle"], rows["dqn"], rows["predictor"]]
    assert list(html.remarks(table)) == [f"rr is not stationary: {hint}."]
    # It wins nothing, however small its figures.
    for figure in html.FIGURES:
        found = html.verdict(figure, table, TRAINED, "heavy-tail")
        assert found["rule"] == "lwr" and found["best"] != "rr"
    unsettled = html.verdict(
        "mean_completion", [rows["lwr"], replace(rows["dqn"], stationary=False)], TRAINED, "heavy-tail"
    )
    assert unsettled["outcome"] == "unsettled" and "cannot be compared with" in unsettled["text"]


def test_the_page_says_how_processors_serve_and_what_sharing_would_do():
    """As an M/G/1 queue of these sizes at load 0.7 does."""
    said = html.discipline(*jaxlb.make("heavy-tail"))
    assert "first come, first served" in said and "13.7 mean services" in said and "for 3.33," in said
    assert html.discipline(*jaxlb.make("time-sharing")) == "Processors serve by 'ps'."
