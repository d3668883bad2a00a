"""A user of the Board: finds what the page shows by its words, as people do."""

from playwright.sync_api import expect


class User:
    """Somebody in front of a browser.

    Args:
        page: Playwright's.
    """

    def __init__(self, page):
        self.page = page

    def fill(self, label, text):
        """Write into a field of text."""
        inner = "/ancestor::label//*[self::input or self::textarea]"
        words = f"//span[@data-testid='block-info'][normalize-space(.)='{label}']"
        field = self.page.locator(f"xpath={words}{inner}").locator("visible=true").first
        field.fill(text)
        field.press("Tab")

    def slide(self, label, number):
        """Write into the number of a slider."""
        field = self.page.get_by_role("spinbutton", name=f"number input for {label}").locator("visible=true").first
        field.fill(str(number))
        field.press("Tab")

    def choose(self, label, value):
        """Choose from a list, which may be asked for when it opens."""
        self.page.get_by_label(label, exact=True).locator("visible=true").first.click()
        self.page.wait_for_timeout(500)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(value)
        self.page.wait_for_timeout(300)
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Tab")

    def tick(self, label):
        """Tick a box or choose one of several."""
        self.page.get_by_label(label, exact=True).locator("visible=true").first.check()

    def click(self, name):
        """Press a button."""
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()

    def unfold(self, label):
        """Open one of the folded parts; an arrow belongs to its name."""
        self.page.get_by_role("button", name=label).locator("visible=true").first.click()

    def open(self, tab):
        """Open a tab."""
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def sees(self, text, seconds=30):
        """Wait until a text is shown somewhere."""
        shown = self.page.get_by_text(text).locator("visible=true").first
        expect(shown).to_be_visible(timeout=1000 * seconds)
        return shown

    def say(self, text, button):
        """Write a message and send it."""
        self.page.locator("textarea:visible").last.fill(text)
        self.click(button)
