"""The colours of figures, reports and terminals: after Okabe and Ito, safe for colour-blind readers."""

#: On white, in the order of methods; yellow is left out, as lines of it vanish.
LIGHT = (
    *("#0072B2", "#D55E00", "#009E73", "#B5548C", "#B98900"),
    *("#3F9FD8", "#6A4FB3", "#8A5A3C", "#7A8B00", "#555B61"),
)
#: The same on black.
DARK = (
    *("#4AA8E8", "#FF8A3D", "#2FCB9A", "#E58BBF", "#E3B53B"),
    *("#8FD0FF", "#A992F5", "#C99672", "#B7C94A", "#AAB2BA"),
)
GREY = "#6B6B6B"
