"""Part 6: what often goes wrong with the patch that keeps the old rows."""

from exercise.grader.mistakes import patches
from exercise.grader.mistakes.patches import afterwards, patched, zeroed
from exercise.grader.part import Mistake

TRICK = '`000`, task 2, "The tricky part"'
OTHERS = "other optimizers step as before"
PATCHED, WRITTEN = "?the optimizer's step is another now", "?the matrix is written into after the optimizer's step"
TAKEN = "?how many of the optimizer's own steps are taken"
OLD, NEW = (tuple(f"{which} rows after step {i}" for i in (1, 2, 3)) for which in ("old", "new"))

KEEP_THE_REST = (
    Mistake(
        "the class patched, and so every optimizer's step",
        patches.every_class,
        "A second optimizer over something else would step like this one. To which object does your step belong?",
        by=(OTHERS,),
    ),
    Mistake(
        "only the gradient zeroed, so that weight decay moves the other rows",
        zeroed(lambda first: slice(first)),
        "What does AdamW's weight decay do to rows without a gradient?",
        by=(*OLD, *NEW),
    ),
    Mistake(
        "the new rows' gradient zeroed: the mask is inverted",
        zeroed(lambda first: slice(first, None)),
        "Which side of `first` is the new word's?",
        by=(*OLD, *NEW),
    ),
    Mistake(
        "the gradient of all rows zeroed",
        zeroed(lambda first: slice(None)),
        "From which row on may the matrix change?",
        by=(*OLD, *NEW),
    ),
    Mistake(
        "nothing is patched: the optimizer's step is as it was",
        patches.nothing,
        "What does `optimizer.step` refer to, after your function has returned?",
        by=(*OLD, *NEW, PATCHED),
    ),
    Mistake(
        "the optimizer's own step never runs, so that nothing is learned",
        (patched(patches.without_step), patched(lambda *_: None)),
        "Who calls the step that was there before?",
        by=(*NEW, TAKEN),
    ),
    Mistake(
        "two of the optimizer's steps at each call",
        patched(patches.twice),
        "How often does your step call the old one?",
        by=(TAKEN,),
    ),
    Mistake(
        "the old rows put back before the step, not after it",
        patched(patches.too_early),
        "What does the matrix hold when training ends?",
    ),
    Mistake(
        "the copy taken too late, after the first step",
        patches.late_copy,
        "At which moment are the old rows still the old ones?",
    ),
    Mistake(
        "what is put back is what was just there, so that all rows move: the copy is none",
        (afterwards(patches.back, kept=lambda weight: weight.detach()), patched(patches.copied_in_the_step)),
        "`detach` gives another view of the same numbers. Which numbers does yours hold, and from when?",
        by=(*OLD, *NEW, WRITTEN),
    ),
    Mistake(
        "nothing is put back: your step runs, and all rows move",
        afterwards(lambda *_: None),
        "Which line changes the numbers in `weight`? A new name for a tensor changes none, nor does changing a copy.",
        by=(*OLD, *NEW),
    ),
    Mistake(
        "the new rows put back as well, so that nothing is learned",
        afterwards(lambda weight, first, copy: weight.copy_(copy)),
        "From which row on may the matrix change?",
    ),
    Mistake(
        "the new rows put back, and the old ones left to move",
        afterwards(lambda weight, first, copy: weight[first:].copy_(copy[first:])),
        "Which side of `first` is the new word's?",
    ),
    Mistake(
        "the first new row put back: an index off by one",
        afterwards(lambda weight, first, copy: weight[: first + 1].copy_(copy[: first + 1])),
        "`first` is the id of a new token.",
    ),
    Mistake(
        "the last old row not put back: an index off by one",
        afterwards(lambda weight, first, copy: weight[: first - 1].copy_(copy[: first - 1])),
        "The slice `[:n]` ends before n.",
    ),
    Mistake(
        "only the row before the new ones put back, or only the first",
        (
            afterwards(lambda weight, first, copy: weight[first - 1].copy_(copy[first - 1])),
            afterwards(lambda weight, first, copy: weight[0].copy_(copy[0])),
            afterwards(lambda weight, first, copy: weight[1:first].copy_(copy[1:first])),
        ),
        "Which rows does the slice `[:first]` have?",
    ),
    Mistake(
        "the old rows set to zero, not to what they were",
        afterwards(lambda weight, first, copy: weight[:first].zero_()),
        "What did the old rows hold before training?",
        by=OLD,
    ),
    Mistake(
        "weight decay switched off for the new rows as well",
        patches.all_decay_off,
        "Which rows is the optimizer still to treat as it did?",
    ),
    Mistake(
        "the step calls itself without end",
        patches.endless,
        "Which function has the name `optimizer.step` when your step calls it?",
    ),
    Mistake(
        "`optimizer.step` is no function any more",
        patches.called,
        "Is a function assigned to it, or what a call returned?",
    ),
    Mistake(
        "autograd takes part when the rows are put back",
        patches.with_gradient,
        "Within what does one change the numbers of a parameter?",
        "the text of `keep_the_rest`",
    ),
    Mistake(
        "the whole matrix frozen, the new rows with it",
        patches.frozen,
        "Can a part of a tensor be without a gradient? The text of this part says what autograd can train.",
    ),
    Mistake(
        "a part of the matrix frozen, which autograd does not know",
        patches.part_of_a_parameter,
        "Can a part of a tensor be without a gradient? The text of this part says what autograd can train.",
    ),
)
