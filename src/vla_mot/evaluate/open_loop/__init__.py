"""Open loop: what a policy would have done at moments of a recording, beside what was done then.

recorded    moments of a dataset, and a policy asked at them
errors      action errors per dimension, horizon step and episode, beside holding still
pictures    PSNR and SSIM of what was foreseen, beside copying the last frame
traces      single episodes, as they are drawn
scorer      all of that over a dataset
results     what was found, as JSON and CSV
plots, page, recording   what people look at: PNG, HTML, Rerun
"""
