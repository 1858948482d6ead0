"""Measuring a policy: closed loop in a simulator, foresight against truth, intervals, and a report of it all.

intervals    Wilson, paired and bootstrap intervals
controllers  what acts in an environment: a policy, or any function of an observation
closed_loop  many seeded episodes in step, with batched inference
video        what the cameras saw and what the policy foresaw, as mp4
open_loop    predicted beside recorded chunks, in numbers and pictures; picture_scores: PSNR and SSIM
foresight    foresight error against copying, a missing history and the training mean
results, foresight_report   what was found, saved and loaded
report       one HTML page (html, curves, report.css: its pieces); picture: one PNG; machine: what it ran on
"""
