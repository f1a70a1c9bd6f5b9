"""Okabe and Ito's colours: told apart by colour-blind readers, and by their lightness in print."""

BLUE, VERMILION, ORANGE, SKY = "#0072B2", "#D55E00", "#E69F00", "#56B4E9"
GREEN, PINK = "#009E73", "#CC79A7"
GREY = "#595959"
BROWN = "#B07A00"  # orange as the colour of letters, which can be read on white and on black
