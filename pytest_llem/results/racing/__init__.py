"""A race of settings for the best one: which of them still need cycles, and what is known of the best when it ends.

`race` is the way in, `answer` what it takes and gives. All of it is pure: equal results give an equal answer.
"""
