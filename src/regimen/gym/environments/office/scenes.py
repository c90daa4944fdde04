"""What offices are made of: people, mails, events and tasks that have nothing to do with what is asked.

In: a random generator. Out: a `Scene` to which a kind of task adds what it is about; then contents in mixed order.
"""

from __future__ import annotations

import random
from datetime import date, timedelta
from typing import Any

from regimen.gym.environments.office.database import Contact, Contents, Email, Event, ToDo
from regimen.gym.environments.office.tools import ME

FIRST = (
    "Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lina", "Marek", "Nora",
    "Omar", "Pia",
)  # fmt: skip
LAST = (
    "Novak", "Okafor", "Lindqvist", "Moreau", "Tanaka", "Silva", "Keller", "Haddad", "Brandt", "Costa", "Dvorak",
    "Egede", "Ferrari", "Galanis", "Hansen", "Ivanov",
)  # fmt: skip
ROOMS = ("Aspen", "Birch", "Cedar", "Elm", "Hazel", "Juniper", "Linden", "Maple", "Oak", "Rowan", "Spruce", "Willow")
TITLES = (
    "Design review", "Budget talk", "Hiring round", "Team lunch", "Roadmap session", "Safety training", "Sales call",
    "Press briefing", "Supplier visit", "Data workshop", "Product demo", "Book club", "Audit meeting", "Yoga class",
    "Board dinner", "Photo session", "Kick-off", "Retrospective", "Fire drill", "Garden tour",
)  # fmt: skip
PROJECTS = (
    "Apollo", "Beacon", "Comet", "Delta", "Ember", "Falcon", "Granite", "Horizon", "Indigo", "Jasper", "Krypton",
    "Lotus", "Meteor", "Nimbus", "Orchid", "Pioneer",
)  # fmt: skip
CHORES = ("write the report for", "check the figures of", "order parts for", "draw the plan of", "test the draft of")
SMALL_TALK = (
    ("Lunch", "Shall we try the new place around the corner some day?"),
    ("Parking", "The yard is closed for cars until the end of the month."),
    ("Holiday photos", "I finally sorted the pictures. Have a look when you find the time."),
    ("Coffee machine", "It works again. Please clean it after use."),
    ("Welcome", "We have a new colleague on the second floor. Say hello!"),
    ("Newsletter", "Here is what happened in our departments last week."),
    ("Printer", "The printer on the first floor is out of paper again."),
    ("Choir", "We meet on Thursdays. Singers of all voices are welcome."),
)
MONDAY = date(2026, 3, 2)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def day_of(index: int) -> str:
    """A working day of the next two weeks, as `YYYY-MM-DD`."""
    return str(MONDAY + timedelta(days=index // 5 * 7 + index % 5))


def named(day: str) -> str:
    """A day as people write it."""
    return f"{WEEKDAYS[date.fromisoformat(day).weekday()]}, {day}"


class Scene:
    """An office in the making: rows without ids, and people to choose from."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        names = [
            f"{first} {last}" for first, last in zip(generator.sample(FIRST, 8), generator.sample(LAST, 8), strict=True)
        ]
        self.people = names
        self.contacts = [Contact(f"contact_{i}", name, address_of(name)) for i, name in enumerate(names, start=1)]
        self.emails: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        for subject, body in generator.sample(SMALL_TALK, 5):
            self.mail(generator.choice(names), subject, body)

    def mail(self, sender: str, subject: str, body: str) -> dict[str, Any]:
        """A mail in the inbox."""
        day = date(2026, 2, self.generator.randint(16, 27))
        sent_at = f"{day} {self.generator.randint(8, 17):02}:{self.generator.randint(0, 59):02}"
        row = {"folder": "inbox", "sender": address_of(sender), "recipients": [ME], "subject": subject, "body": body}
        self.emails.append({**row, "sent_at": sent_at})
        return self.emails[-1]

    def event(self, title: str, day: str, hour: int, people: list[str] | None = None, room: str = "") -> dict[str, Any]:
        """An event of one hour."""
        times = {"start": f"{day} {hour:02}:00", "end": f"{day} {hour + 1:02}:00"}
        attendees = [address_of(name) for name in people or []]
        self.events.append({"title": title, **times, "location": room, "attendees": attendees})
        return self.events[-1]

    def task(self, title: str, due: str | None, status: str = "open") -> dict[str, Any]:
        """A task."""
        priority = self.generator.choice(("low", "normal"))
        self.tasks.append({"title": title, "due": due, "priority": priority, "status": status})
        return self.tasks[-1]

    def finish(self) -> Contents:
        """Everything in mixed order, with its id, which each row has from now on."""
        for prefix, rows in (("email", self.emails), ("event", self.events), ("task", self.tasks)):
            self.generator.shuffle(rows)
            for index, row in enumerate(rows, start=1):
                row["id"] = f"{prefix}_{index}"
        return Contents(
            self.contacts,
            [Email(**row) for row in self.emails],
            [Event(**row) for row in self.events],
            [ToDo(**row) for row in self.tasks],
        )


def address_of(name: str) -> str:
    """The address of a person."""
    return name.lower().replace(" ", ".") + "@office.example"
