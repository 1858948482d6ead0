"""Meta-World's fifty tabletop tasks, through LeRobot's own environment: the same scenes, cameras, states and actions as
`lerobot-eval --env.type=metaworld` shows a policy.

graphics    which library draws without a display, chosen before MuJoCo is imported
env         the gymnasium environment: several tasks, up to six cameras, at a tenth of the rendering time
demonstrate scripted experts, disturbed, with clean labels

Import `graphics` alone before `graphics.choose()` was called: the others import MuJoCo. Needs `vla-mot[metaworld]`.
"""
