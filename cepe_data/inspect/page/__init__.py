"""What the page of `sanity_check.py report` shows: summary.py says what was made and how, figures.py draws it, rows.py
has some rows of every set as text. template.html, page.js and page.css show that in a browser.
"""
