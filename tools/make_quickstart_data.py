"""Write the quickstart's data: household trajectories, pictures, dataset_info.json and the tokenizer's corpus.

    python tools/make_quickstart_data.py [--output-dir src/hsa_factory/quickstart/data]

The world is a toy: rooms, things that lie somewhere, containers that must be opened first. Each trajectory is a plan
for one task, told in words; two of three also hold a mistake, the feedback on it, and the corrected continuation.
The same seed writes the same files.
"""

import argparse
import json
import random
import re
from pathlib import Path

from quickstart_rooms import ROOMS, draw


DATA = Path(__file__).resolve().parents[1] / "src/hsa_factory/quickstart/data"
FEEDBACK = "<|feedback|>"
GLOBAL, LANDMARK, NOISE = "GLOBAL_CONDITION", "LANDMARK", "NOISE"
KEY_ACTIONS = ("open", "close", "pick up", "put", "toggle", "slice")

SYSTEM = (
    "You are a household robot. Work on the task one action at a time. Actions: navigate to, observe, open, close, "
    "pick up, put, toggle, slice, end. You hold one thing at most, and you reach only what is right before you. "
    "Think if it helps, then answer with <DecisionMaking>action</DecisionMaking>."
)

CONTAINERS = {"fridge", "cabinet", "drawer", "wardrobe", "chest", "basket", "bin", "box"}
OPENED = CONTAINERS - {"basket", "bin", "box"}

# kind, room, what the task is about
TASKS = [
    ("bring", "kitchen", "apple", "fridge", "counter"),
    ("bring", "kitchen", "mug", "cabinet", "sink"),
    ("bring", "dining room", "plate", "table", "sideboard"),
    ("bring", "bedroom", "blanket", "wardrobe", "bed"),
    ("bring", "bathroom", "towel", "shelf", "basket"),
    ("bring", "living room", "newspaper", "sofa", "bin"),
    ("bring", "study", "notebook", "drawer", "desk"),
    ("bring", "living room", "toy car", "carpet", "box"),
    ("bring", "bedroom", "alarm clock", "shelf", "nightstand"),
    ("store", "kitchen", "milk", "table", "fridge"),
    ("store", "study", "letter", "desk", "drawer"),
    ("store", "bedroom", "sweater", "chair", "wardrobe"),
    ("store", "dining room", "candle", "table", "cabinet"),
    ("store", "living room", "cushion", "armchair", "chest"),
    ("store", "bathroom", "soap", "sink", "cabinet"),
    ("slice", "kitchen", "bread", "counter", "table"),
    ("slice", "kitchen", "tomato", "sink", "counter"),
    ("slice", "dining room", "cake", "sideboard", "table"),
    ("toggle", "living room", "floor lamp", "television", "on"),
    ("toggle", "bedroom", "reading lamp", "radio", "off"),
    ("toggle", "study", "desk lamp", "computer", "on"),
    ("toggle", "bathroom", "ceiling light", "heater", "off"),
    ("carry", "bedroom", "kitchen", "cup", "nightstand", "sink"),
    ("carry", "study", "living room", "book", "desk", "sofa"),
]

THINK_GO = [
    "The {thing} should be near the {place}, so I go there first.",
    "The {place} is a likely spot for the {thing}. Let me have a look.",
    "I begin at the {place}.",
    "",
]
THINK_SWITCH = ["First the {place}.", "I begin at the {place}.", ""]
THINK_NEXT = [
    "That is done. Now the {place}.",
    "With the {thing} in hand I head for the {place}.",
    "Next stop: the {place}.",
]
THINK_KEY = ["This is the moment to {action}.", "Everything is ready to {action}.", "Now I {action}.", ""]
THINK_END = ["The {thing} is where it belongs.", "All that was asked for is done.", "Nothing is left to do."]
VIEW = "The {thing} is right here."
SEE = [
    "You stand before the {place}. {view}",
    "You have reached the {place}. {view}",
    "The {place} is right in front of you. {view}",
]
ASK = {
    "bring": ["Please put the {thing} {prep} the {target}.", "The {thing} should end up {prep} the {target}."],
    "store": ["Put the {thing} away in the {target} and close it.", "The {thing} belongs in the closed {target}."],
    "slice": ["Cut the {thing} into slices.", "I would like slices of the {thing}, please."],
    "toggle": ["Switch the {thing} and the {target} {prep}.", "Both the {thing} and the {target} should be {prep}."],
    "carry": ["Carry the {thing} from the {room} {prep} the {target} of the {other}."],
}
LOOK = ["You are in the {room}.", "This is the {room} before you.", "You have just come into the {room}."]
REFLECT = [
    "I was too hasty. {lesson}",
    "That did not work. {lesson}",
    "The feedback is clear: {lesson}",
    "I see my mistake. {lesson}",
]

SENTENCES = """\
The morning light falls through the window and warms the wooden floor.
A good plan names the next step, and a better one says what to do when that step fails.
Keys, glasses and letters are often found where somebody last sat down.
When the door of the fridge stays open, the milk turns sour and the motor never rests.
She counted the spoons twice: twelve in the drawer, two in the sink, one under the table.
How far is it from the kitchen to the garden? About twenty steps, if nobody is in the way.
They painted the hall green, the stairs white, and left the ceiling as it was.
An empty shelf tells you as much as a full one: what you are looking for is somewhere else.
"Where did you put the ladder?" he asked. "Behind the shed," she said, "next to the old bicycle."
It rained for three days; on the fourth, the cat went outside again.
To boil an egg you need water, heat and about seven minutes of patience.
Robots do not get tired, but their batteries do, at 9:30 as well as at 17:45.
Some rooms have one window, some have none, and the study has a view of the whole street.
Do not lift the box before you know how heavy it is.
We remember where things happened better than when they happened.
If the lamp does not work, check the plug first and the bulb second.
The carpet in the living room is older than the house.
What was written on the note? Only two words: thank you.
The baker sold 48 rolls, 15 loaves and one very large cake.
Every tool has its place on the wall, and every place has a name below it.
厨房里有一张桌子和四把椅子。
请把苹果放在桌子上，然后关上冰箱的门。
机器人先看看四周，再决定下一步做什么。
杯子不在柜子里，可能在水槽旁边。
书房很安静，窗外下着小雨。
任务已经完成，可以结束了。
"""


class Trajectory:
    """Messages of one household episode, written step by step."""

    def __init__(self, task: tuple[str, ...], mistake: bool, rng: random.Random):
        self.kind, self.room, *self.args = task
        self.mistake, self.rng = mistake, rng
        self.lesson = ""
        self.images = [_image(self.room)]
        self.messages = [{"role": "system", "content": SYSTEM, "semantic_type": GLOBAL}]
        getattr(self, self.kind)(*self.args)

    def ask(self, **words: str) -> None:
        ask, look = self.rng.choice(ASK[self.kind]), self.rng.choice(LOOK)
        self._user(f"<image>{look.format(room=self.room)}\nTask: {ask.format(**words)}", GLOBAL)

    def step(self, action: str, thought: str, seen: str = "") -> None:
        if self.lesson:
            thought, self.lesson = self.rng.choice(REFLECT).format(lesson=self.lesson), ""
        think = f"<think>{thought}</think>" if thought else ""
        kind = LANDMARK if action.startswith(KEY_ACTIONS) else NOISE
        content = f"{think}<DecisionMaking>{action}</DecisionMaking>"
        self.messages.append({"role": "assistant", "content": content, "semantic_type": kind})
        if seen:
            self._user(seen, NOISE)

    def err(self, action: str, thought: str, complaint: str, lesson: str) -> None:
        """Do something that fails, hear why, and keep the lesson for the next thought."""
        self.step(action, thought, FEEDBACK + complaint)
        self.lesson = lesson

    def _user(self, content: str, kind: str) -> None:
        self.messages.append({"role": "user", "content": content, "semantic_type": kind})

    def go(self, place: str, view: str, thoughts: list[str], thing: str) -> None:
        seen = self.rng.choice(SEE).format(place=place, view=view)
        self.step(f"navigate to {place}", self.rng.choice(thoughts).format(place=place, thing=thing), seen)

    def act(self, action: str, seen: str) -> None:
        nouns = "|".join(sorted({*self.args, "knife"}, key=len, reverse=True))
        spoken = re.sub(rf"\b({nouns})\b", r"the \1", action)
        self.step(action, self.rng.choice(THINK_KEY).format(action=spoken), seen)

    def end(self, moved: str = "") -> None:
        thoughts = THINK_END if moved else THINK_END[1:]
        self.step("end", self.rng.choice(thoughts).format(thing=moved))

    def fetch(self, thing: str, place: str) -> None:
        """Go to where a thing is and take it, out of a container if it is in one."""
        closed = place in OPENED
        if self.mistake and not closed:
            self.err(
                f"pick up {thing}",
                f"The task needs the {thing}, so I take it.",
                f"You cannot pick up the {thing} from here: it is out of reach. Go to the place where it lies first.",
                f"I must stand before the {place} to reach the {thing}.",
            )
        self.go(place, "It is closed." if closed else VIEW.format(thing=thing), THINK_GO, thing)
        if closed:
            if self.mistake:
                self.err(
                    f"pick up {thing}",
                    f"The {thing} must be in there.",
                    f"The {place} is closed, so the {thing} cannot be picked up. Make it accessible first.",
                    f"A closed {place} has to be opened before I take anything.",
                )
            self.act(f"open {place}", f"The {place} is open. You see the {thing} and a few other things.")
        self.act(f"pick up {thing}", f"You hold the {thing} now.")

    def bring(self, thing: str, place: str, target: str) -> None:
        prep = "in" if target in CONTAINERS or target == "sink" else "on"
        self.ask(thing=thing, target=target, prep=prep)
        self.fetch(thing, place)
        self.go(target, "There is room enough.", THINK_NEXT, thing)
        self.act(f"put {thing} {prep} {target}", f"The {thing} is {prep} the {target}. Your hand is empty.")
        self.end(thing)

    def carry(self, other: str, thing: str, place: str, target: str) -> None:
        prep = "into" if target == "sink" else "onto"
        self.ask(thing=thing, target=target, prep=prep, room=self.room, other=other)
        self.fetch(thing, place)
        self.images.append(_image(other))
        self.go(other, "<image>From here you see the whole room.", THINK_NEXT, thing)
        self.go(target, "There is room enough.", THINK_NEXT, thing)
        self.act(f"put {thing} {prep[:2]} {target}", f"The {thing} has arrived. Your hand is empty.")
        self.end(thing)

    def store(self, thing: str, place: str, target: str) -> None:
        self.ask(thing=thing, target=target)
        self.go(place, VIEW.format(thing=thing), THINK_GO, thing)
        self.act(f"pick up {thing}", f"You hold the {thing} now.")
        if self.mistake:
            self.err(
                f"put {thing} in {target}",
                f"The {thing} goes into the {target}.",
                f"You are still at the {place}; the {target} is on the other side of the {self.room}.",
                f"I have to walk over to the {target} and open it.",
            )
        self.go(target, "It is closed.", THINK_NEXT, thing)
        self.act(f"open {target}", f"The {target} is open and nearly empty.")
        self.act(f"put {thing} in {target}", f"The {thing} lies in the {target}.")
        if not self.mistake:
            self.act(f"close {target}", f"The {target} is closed.")
            self.end(thing)
        else:
            self.step(f"close {target}", "Closing it completes the task.")

    def slice(self, thing: str, place: str, target: str) -> None:
        self.ask(thing=thing)
        if self.mistake:
            self.go(target, VIEW.format(thing=thing), THINK_GO, thing)
            self.err(
                f"slice {thing}",
                f"Here is the {thing}, so I cut it.",
                f"You hold nothing that cuts. Find a knife before you slice the {thing}.",
                f"Slicing needs a knife, and knives are kept at the {place}.",
            )
        self.go(place, VIEW.format(thing="knife"), THINK_GO, "knife")
        self.act("pick up knife", "You hold the knife now.")
        self.go(target, VIEW.format(thing=thing), THINK_NEXT, "knife")
        self.act(f"slice {thing}", f"The {thing} is in slices.")
        self.end()

    def toggle(self, first: str, second: str, state: str) -> None:
        before = "off" if state == "on" else "on"
        self.ask(thing=first, target=second, prep=state)
        self.go(first, f"It is {before}.", THINK_SWITCH, "switch")
        self.act(f"toggle {first}", f"The {first} is {state} now.")
        if self.mistake:
            self.err(
                f"toggle {first}",
                f"Now the {second}.",
                f"The {first} was {state} as it should be; now it is {before} again. The {second} is what is missing.",
                f"I switched the wrong thing, so I switch the {first} back.",
            )
            self.act(f"toggle {first}", f"The {first} is {state} again.")
        self.go(second, f"It is {before}.", THINK_NEXT[::2], "switch")
        self.act(f"toggle {second}", f"The {second} is {state} now.")
        self.end()


def _image(room: str) -> str:
    return f"images/{room.replace(' ', '_')}.png"


def without_images(trajectory: dict) -> dict:
    messages = [
        {**message, "content": message["content"].replace("<image>", "")} for message in trajectory["messages"]
    ]
    return {"messages": messages}


def write(directory: Path, seed: int) -> None:
    rng = random.Random(seed)
    trajectories = []
    for number, task in enumerate(TASKS):
        written = Trajectory(task, mistake=number % 3 != 2, rng=rng)
        trajectories.append({"messages": written.messages, "images": written.images})
    rng.shuffle(trajectories)
    texts = [without_images(trajectory) for trajectory in trajectories]

    (directory / "images").mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        draw(room).save(directory / _image(room), optimize=True)

    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"system_tag": "system", "semantic_tag": "semantic_type"}
    info = {
        "household": {
            "file_name": "trajectories.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": tags,
        },
        "household_text": {
            "file_name": "trajectories_text.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": tags,
        },
    }
    for name, content in (
        ("trajectories.json", trajectories),
        ("trajectories_text.json", texts),
        ("dataset_info.json", info),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (directory / name).write_text(text, encoding="utf-8", newline="\n")

    contents = [message["content"].replace(FEEDBACK, "") for item in texts for message in item["messages"]]
    corpus = "\n".join(dict.fromkeys(contents)) + "\n" + SENTENCES
    (directory / "corpus.txt").write_text(corpus, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.output_dir, arguments.seed)
