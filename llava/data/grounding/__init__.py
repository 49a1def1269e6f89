"""Where and when: boxes and spans as text, tasks made of annotations, and boxes that move with the pixels.

Numbers of records and annotations are fractions of the *frame* as a player shows it, whatever a run makes of it: x and
y from 0 at its left and upper edge to 1, times from 0 at the first frame of the clip (or segment) to 1 at its last.
`geometry` says where they lie in the square picture that a tower sees, and datasets move them there; what a model
answers is of that square.
"""
