"""A page in the browser, served on this machine: label images and scenes, see attention, compare runs.

- `server`: the application and its address; `guard`: which requests it answers.
- `workspace`: the models, the person's images, and the temporary folder; `jobs`: one job at a time.
- One Python module with the routes of each tab, and one JavaScript module in `static/`: `label`, `attention`,
  `runs`. Routes are below `/api/` and the name of the tab.
"""
