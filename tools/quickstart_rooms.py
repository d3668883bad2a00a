"""Simple pictures of six rooms, drawn with a few boxes, ovals and lines each."""

from PIL import Image, ImageDraw


# wall, floor, then the furniture: (shape, corners, colour), on a canvas of 112 × 112
ROOMS = {
    "kitchen": ("#f3e9d2", "#c9a66b", [
        ("box", (6, 22, 36, 96), "#dfe7ec"), ("line", (6, 50, 36, 50), "#7a8a94"), ("box", (31, 30, 33, 44), "#7a8a94"),
        ("box", (42, 62, 108, 98), "#8c5a3c"), ("box", (42, 58, 108, 63), "#5b5b5b"), ("box", (74, 50, 94, 58), "#b7c4cc"),
        ("oval", (50, 48, 60, 58), "#c62828"), ("box", (48, 14, 100, 34), "#a9714b"), ("line", (74, 14, 74, 34), "#5d3a22"),
    ]),
    "bedroom": ("#d8e2f0", "#b08d6a", [
        ("box", (30, 62, 108, 92), "#5c7fb8"), ("box", (92, 48, 108, 64), "#fafafa"), ("box", (26, 44, 31, 98), "#6b4423"),
        ("box", (6, 68, 22, 96), "#8c5a3c"), ("box", (12, 54, 16, 68), "#444444"), ("oval", (6, 42, 22, 56), "#ffd54f"),
        ("box", (44, 10, 80, 36), "#87ceeb"), ("line", (62, 10, 62, 36), "#ffffff"), ("line", (44, 23, 80, 23), "#ffffff"),
    ]),
    "living room": ("#efe0d6", "#9c7a54", [
        ("oval", (18, 84, 96, 108), "#8e3b46"), ("box", (14, 56, 72, 88), "#3f7d5f"), ("box", (14, 42, 72, 60), "#4c9472"),
        ("box", (8, 50, 18, 90), "#2f6149"), ("box", (70, 50, 80, 90), "#2f6149"), ("box", (98, 36, 101, 94), "#333333"),
        ("oval", (88, 22, 111, 42), "#ffe082"), ("box", (28, 10, 66, 32), "#222222"), ("box", (31, 13, 63, 29), "#4a6fa5"),
    ]),
    "bathroom": ("#cfeaea", "#9fb8bf", [
        ("box", (36, 64, 108, 94), "#ffffff"), ("oval", (38, 56, 106, 74), "#7ec8e3"), ("box", (98, 40, 102, 60), "#90a4ae"),
        ("box", (8, 60, 28, 66), "#ffffff"), ("box", (15, 66, 21, 98), "#eceff1"), ("oval", (6, 16, 30, 48), "#e1f5fe"),
        ("box", (50, 14, 90, 18), "#8d6e63"), ("box", (56, 18, 72, 40), "#ef6c57"),
    ]),
    "study": ("#e8e4c9", "#7b5b3a", [
        ("box", (8, 60, 80, 66), "#5d4037"), ("box", (10, 66, 16, 98), "#5d4037"), ("box", (60, 66, 80, 98), "#6d4c41"),
        ("box", (24, 38, 54, 58), "#263238"), ("box", (27, 41, 51, 55), "#64b5f6"), ("box", (86, 12, 110, 98), "#8d6e63"),
        ("box", (89, 18, 95, 36), "#c0392b"), ("box", (96, 20, 101, 36), "#27ae60"), ("box", (102, 16, 107, 36), "#2c3e50"),
        ("box", (89, 46, 97, 62), "#f39c12"), ("box", (99, 44, 106, 62), "#8e44ad"),
    ]),
    "dining room": ("#f7d9c4", "#a47148", [
        ("box", (20, 62, 92, 69), "#6b3e1f"), ("box", (26, 69, 32, 102), "#6b3e1f"), ("box", (80, 69, 86, 102), "#6b3e1f"),
        ("box", (4, 50, 9, 102), "#3e2723"), ("box", (9, 76, 22, 81), "#3e2723"), ("box", (103, 50, 108, 102), "#3e2723"),
        ("oval", (36, 56, 54, 63), "#ffffff"), ("box", (64, 46, 68, 62), "#fff3e0"), ("oval", (63, 39, 69, 47), "#ff9800"),
        ("line", (56, 0, 56, 14), "#444444"), ("oval", (44, 12, 68, 26), "#ffe082"),
    ]),
}  # fmt: skip


def draw(room: str) -> Image.Image:
    """Draw a room of `ROOMS` on 112 × 112 pixels."""
    wall, floor, furniture = ROOMS[room]
    picture = Image.new("RGB", (112, 112), wall)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 80, 111, 111), fill=floor)
    for shape, corners, colour in furniture:
        if shape == "line":
            pen.line(corners, fill=colour, width=2)
        else:
            (pen.rectangle if shape == "box" else pen.ellipse)(corners, fill=colour, outline="#2b2b2b")
    return picture
