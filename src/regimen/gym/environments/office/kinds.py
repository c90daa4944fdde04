"""The kinds of tasks: each a function from a random generator to an office, a request and the goals.

The goals come from what the function put into the office, never from reading the request. Every office also holds what
must stay as it is: mails, events and tasks that fit the request but for one thing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from regimen.gym.environments.office.database import Contents
from regimen.gym.environments.office.scenes import (
    CHORES,
    PROJECTS,
    ROOMS,
    TITLES,
    Scene,
    address_of,
    day_of,
    named,
)

NOTES = (
    "The tickets are at the front desk.", "The train leaves one hour later.", "The samples arrived this morning.",
    "The contract is signed.", "The heating is off until Friday.", "The slides are ready.", "The key is in the safe.",
    "The guests like to eat early.", "The camera is charged.", "The old badge does not work any more.",
)  # fmt: skip
SUBJECTS = ("Short note", "For your information", "News", "About tomorrow", "One more thing", "Update")


class Job(msgspec.Struct, frozen=True):
    """An office, what is asked, and the goals; what is asked is the key."""

    kind: str
    text: str
    contents: Contents
    goals: list[dict[str, Any]]

    @property
    def key(self) -> str:
        """What tasks are told apart by."""
        return f"{self.kind} {self.text}"


def _mail(to: list[str], body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The goal of a mail that is sent."""
    wanted = {"folder": "sent", "recipients": [address_of(name) for name in to], "reply_to": None, "body": body}
    return {"do": "add", "table": "emails", "fields": {**wanted, **fields}}


def _changed(table: str, row: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"do": "change", "table": table, "id": row["id"], "fields": fields}


def send_mail(generator: random.Random) -> Job:
    """A mail to somebody whose address is in the contacts."""
    scene = Scene(generator)
    name, note, subject = generator.choice(scene.people), generator.choice(NOTES), generator.choice(SUBJECTS)
    contents = scene.finish()
    text = f'Send {name} a mail with the subject "{subject}" that says: {note}'
    goal = _mail([name], {"contains": [note.rstrip(".")], "max_words": 40}, subject=subject)
    return Job("send_mail", text, contents, [goal])


def pass_on(generator: random.Random) -> Job:
    """Something that stands in a mail, sent to somebody else."""
    scene = Scene(generator)
    rooms, codes = generator.sample(ROOMS, 4), [str(code) for code in generator.sample(range(1000, 10000), 4)]
    for room, code in zip(rooms, codes, strict=True):
        scene.mail(generator.choice(scene.people), f"Door of {room}", f"The code for the door of {room} is {code} now.")
    name = generator.choice(scene.people)
    text = f"{name} needs the code for the door of {rooms[0]}. Find it in my mail and send it to {name.split()[0]}."
    goal = _mail([name], {"contains": [codes[0]], "lacks": codes[1:], "max_words": 60})
    return Job("pass_on", text, scene.finish(), [goal])


def reply(generator: random.Random) -> Job:
    """An answer to a mail, from the calendar."""
    scene = Scene(generator)
    titles, rooms = generator.sample(TITLES, 4), generator.sample(ROOMS, 4)
    for title, room in zip(titles, rooms, strict=True):
        scene.event(title, day_of(generator.randint(0, 9)), generator.randint(9, 16), None, room)
    asking, other = generator.sample(scene.people, 2)
    mail = scene.mail(asking, "Where is it?", f"Which room is the {titles[0]} in?")
    scene.mail(other, "Where is it?", f"Which room is the {titles[1]} in?")
    scene.mail(asking, titles[0], "I look forward to it.")
    contents = scene.finish()
    text = f"{asking} asks by mail in which room the {titles[0]} is. Look it up in my calendar and answer that mail."
    goal = _mail([asking], {"contains": [rooms[0]], "lacks": rooms[1:], "max_words": 60}, reply_to=mail["id"])
    return Job("reply", text, contents, [goal])


def file_mail(generator: random.Random) -> Job:
    """Mails of one sender on one matter, into a folder."""
    scene = Scene(generator)
    sender, other = generator.sample(scene.people, 2)
    folder, subject, decoy = generator.choice((("invoices", "Invoice", "Offer"), ("travel", "Booking", "Timetable")))
    numbers = generator.sample(range(100, 1000), 6)
    wanted = [scene.mail(sender, f"{subject} {number}", "Please find it below.") for number in numbers[:3]]
    wanted = wanted[: generator.randint(2, 3)]
    for mail in [mail for mail in scene.emails if mail["subject"].startswith(subject) and mail not in wanted]:
        scene.emails.remove(mail)
    scene.mail(other, f"{subject} {numbers[3]}", "Please find it below.")
    scene.mail(sender, f"{decoy} {numbers[4]}", "Please find it below.")
    contents = scene.finish()
    text = f'Move every mail from {sender} whose subject begins with "{subject}" to the folder {folder}.'
    return Job("file_mail", text, contents, [_changed("emails", mail, folder=folder) for mail in wanted])


def schedule(generator: random.Random) -> Job:
    """A new event with people."""
    scene = Scene(generator)
    _fill(scene, generator)
    title, room, day = generator.choice(TITLES), generator.choice(ROOMS), day_of(generator.randint(5, 9))
    people = generator.sample(scene.people, 2)
    hour, length = generator.randint(9, 15), generator.randint(1, 2)
    start, end = f"{hour:02}:00", f"{hour + length:02}:00"
    text = (
        f'Put "{title}" in my calendar on {named(day)} from {start} to {end}, at the location {room}, with the '
        f"attendees {people[0]} and {people[1]}."
    )
    fields = {"title": title, "start": f"{day} {start}", "end": f"{day} {end}", "location": room}
    attendees = [address_of(name) for name in people]
    goal = {"do": "add", "table": "events", "fields": {**fields, "attendees": attendees}}
    return Job("schedule", text, scene.finish(), [goal])


def free_slot(generator: random.Random) -> Job:
    """A new event at the first free hours of a day."""
    scene = Scene(generator)
    title, day, length = generator.choice(TITLES), day_of(generator.randint(0, 4)), generator.randint(1, 2)
    titles = [other for other in TITLES if other != title]
    taken = sorted(generator.sample(range(9, 16), 4))
    for name, hour in zip(generator.sample(titles, 4), taken, strict=True):
        scene.event(name, day, hour)
    scene.event(generator.choice(titles), day_of(5), 9)
    hour = next(h for h in range(9, 18) if not {*range(h, h + length)} & {*taken})
    hours = "one hour" if length == 1 else "two hours"
    text = (
        f'Put "{title}" in my calendar on {named(day)}, {hours} long, at the earliest full hour from 09:00 on from '
        "which I am free for as long. It has no location and no attendees."
    )
    times = {"start": f"{day} {hour:02}:00", "end": f"{day} {hour + length:02}:00"}
    fields: dict[str, Any] = {"title": title, **times, "location": "", "attendees": []}
    return Job("free_slot", text, scene.finish(), [{"do": "add", "table": "events", "fields": fields}])


def move_event(generator: random.Random) -> Job:
    """An event to another day; one of the same title stays."""
    scene = Scene(generator)
    title, room = generator.choice(TITLES), generator.choice(ROOMS)
    old, other, new = (day_of(index) for index in generator.sample(range(10), 3))
    hour = generator.randint(9, 16)
    event = scene.event(title, old, hour, generator.sample(scene.people, 2), room)
    scene.event(title, other, hour, generator.sample(scene.people, 2), room)
    _fill(scene, generator, title)
    contents = scene.finish()
    text = f'Move "{title}" of {named(old)} to {named(new)}, at the same time of day.'
    goal = _changed("events", event, start=f"{new} {hour:02}:00", end=f"{new} {hour + 1:02}:00")
    return Job("move_event", text, contents, [goal])


def cancel(generator: random.Random) -> Job:
    """Every event of a day with somebody."""
    scene = Scene(generator)
    name, other = generator.sample(scene.people, 2)
    day, later = (day_of(index) for index in generator.sample(range(10), 2))
    hours, titles = generator.sample(range(9, 17), 4), generator.sample(TITLES, 5)
    wanted = [scene.event(titles[i], day, hours[i], [name, other]) for i in range(generator.randint(1, 2))]
    scene.event(titles[2], day, hours[2], [other])
    scene.event(titles[3], later, hours[3], [name])
    contents = scene.finish()
    text = f"Cancel every event on {named(day)} that {name} attends."
    return Job("cancel", text, contents, [{"do": "remove", "table": "events", "id": event["id"]} for event in wanted])


def complete(generator: random.Random) -> Job:
    """The tasks of a project that are due before a day."""
    scene = Scene(generator)
    project, other = generator.sample(PROJECTS, 2)
    limit = generator.randint(2, 8)
    chores = generator.sample(CHORES, 5)
    before = [day_of(generator.randint(0, limit - 1)) for _ in range(3)]
    wanted = [scene.task(f"{chores[i]} {project}", before[i]) for i in range(generator.randint(1, 2))]
    scene.task(f"{chores[2]} {project}", day_of(limit))
    scene.task(f"{chores[3]} {project}", before[2], "done")
    scene.task(f"{chores[4]} {other}", before[2])
    contents = scene.finish()
    text = f"Mark every open task of the project {project} that is due before {named(day_of(limit))} as done."
    return Job("complete", text, contents, [_changed("tasks", task, status="done") for task in wanted])


def hurry(generator: random.Random) -> Job:
    """The open tasks of a project get a priority and a day."""
    scene = Scene(generator)
    project, other = generator.sample(PROJECTS, 2)
    due, chores = day_of(generator.randint(0, 4)), generator.sample(CHORES, 4)
    wanted = [scene.task(f"{chores[i]} {project}", day_of(9)) for i in range(generator.randint(1, 2))]
    scene.task(f"{chores[2]} {project}", day_of(9), "done")
    scene.task(f"{chores[3]} {other}", day_of(9))
    contents = scene.finish()
    text = (
        f"Every open task of the project {project} is urgent: set its priority to high and make it due on {named(due)}."
    )
    return Job("hurry", text, contents, [_changed("tasks", task, priority="high", due=due) for task in wanted])


def note_down(generator: random.Random) -> Job:
    """A task with the day that a mail says."""
    scene = Scene(generator)
    name, other = generator.sample(scene.people, 2)
    project, second = generator.sample(PROJECTS, 2)
    due, wrong, late = (day_of(index) for index in generator.sample(range(10), 3))
    scene.mail(name, f"Report on {project}", f"I need the report on {project} on {due} at the latest.")
    scene.mail(other, f"Report on {project}", f"The report on {project} was to come on {wrong}. Ask somebody else.")
    scene.mail(name, f"Report on {second}", f"I need the report on {second} on {late} at the latest.")
    title = f"Report on {project}"
    text = f'Create a task with the title "{title}", due on the day by which {name} needs it. My mail says when.'
    fields = {"title": title, "due": due, "priority": "normal", "status": "open"}
    return Job("note_down", text, scene.finish(), [{"do": "add", "table": "tasks", "fields": fields}])


def postpone(generator: random.Random) -> Job:
    """An event one hour later, and a mail about it to those who attend."""
    scene = Scene(generator)
    title, day, hour = generator.choice(TITLES), day_of(generator.randint(0, 9)), generator.randint(9, 15)
    people = generator.sample(scene.people, generator.randint(2, 3))
    event = scene.event(title, day, hour, people, generator.choice(ROOMS))
    _fill(scene, generator, title)
    contents = scene.finish()
    text = (
        f'Let "{title}" on {named(day)} begin and end one hour later. Then send one mail to all who attend it, with '
        'the subject "New time", that says when it begins now, as HH:MM.'
    )
    moved = _changed("events", event, start=f"{day} {hour + 1:02}:00", end=f"{day} {hour + 2:02}:00")
    mail = _mail(people, {"contains": [f"{hour + 1:02}:00"], "max_words": 60}, subject="New time")
    return Job("postpone", text, contents, [moved, mail])


def _fill(scene: Scene, generator: random.Random, title: str = "") -> None:
    """Three other events, none of that title."""
    for name in generator.sample([other for other in TITLES if other != title], 3):
        scene.event(name, day_of(generator.randint(0, 9)), generator.randint(9, 16), generator.sample(scene.people, 2))


KINDS: dict[str, Callable[[random.Random], Job]] = {
    kind.__name__: kind
    for kind in (
        send_mail,
        pass_on,
        reply,
        file_mail,
        schedule,
        free_slot,
        move_event,
        cancel,
        complete,
        hurry,
        note_down,
        postpone,
    )
}
