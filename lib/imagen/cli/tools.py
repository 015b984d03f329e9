"""The tools by name, each with the line that says what it is for."""

TOOLS = {
    "render": "Turn prompts into images: request lines in, records out.",
    "upload": "Bring each image into the cloud: its object and its row.",
    "listen": "Work on queued jobs from Postgres, through a pipeline that keeps running.",
    "generate": "Make an image the everyday way: render, then what is set up behind it.",
    "sheet": "Put many images on one picture, each with an address.",
    "compare": "Send one request to several backends, and show what came side by side.",
    "backends": "List the backends and whether they can be used.",
    "workflow": "List, show and check ComfyUI workflows; make one of an export.",
    "models": "Show, fetch and verify the model files that workflows need.",
    "config": "Print a sample configuration, check one, or show what is in force.",
    "migrate": "Set up the database: apply the SQL migrations, each once.",
    "log-usage": "Write down what each render cost, once.",
    "usage": "Add up what was rendered and what it cost; show what a budget has left.",
    "enqueue": "Queue requests for a worker: request lines in, jobs out.",
    "jobs": "Show what is queued, running and stuck; try again, or cancel.",
    "preview": "Show each image in a tmux window beside yours.",
}
