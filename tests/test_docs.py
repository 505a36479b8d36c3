"The site: it builds without a warning, and every page is opened in a headless Chromium, on a desk and on a phone."
import pytest
from pathlib import Path
from advinterp._modidx import d as modidx
from tools import browser, docs

DESK, PHONE = dict(width=1280, dark=False), dict(width=390, dark=True)
LOOK = '''(() => { const main = document.querySelector('main');
  const bare = (e) => { const c = e.cloneNode(true); c.querySelectorAll('pre, code, script, .katex').forEach(x => x.remove()); return c.innerText; };
  const math = [...main.querySelectorAll('.math')], prose = [main, document.querySelector('#TOC')].filter(Boolean).map(bare).join(' ');
  return { text: main.innerText.length, formulas: math.length, wide: document.documentElement.scrollWidth - innerWidth,
           raw: math.filter(e => !e.querySelector('.katex') || e.querySelector('.katex-error')).map(e => e.innerText.slice(0, 80))
                .concat(prose.match(/\\$\\$|\\\\[([]|\\\\(?:frac|mathbb|epsilon|nabla|tag|begin)/g) || []),
           blind: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt || i.src.slice(0, 80)) }; })()'''


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the built site, and what is wrong with it."
    out = tmp_path_factory.mktemp('docs')/'site'
    return out, docs.build(out)

@pytest.fixture(scope='module')
def seen(site):
    "What a reader's browser finds on each page: (page, window) -> facts."
    if not browser.find(): pytest.skip('no Chromium here: install it (Debian: chromium) or name it in CHROMIUM')
    facts = {}
    with browser.Browser() as b:
        for p in sorted(site[0].rglob('*.html')):
            for window in (DESK, PHONE):
                with b.open(p.as_uri(), **window) as page:
                    facts[p.relative_to(site[0]).as_posix(), window['width']] = page.eval(LOOK) | dict(problems=page.problems)
    return facts

def wrong(seen, f): return {k: f(v) for k,v in seen.items() if f(v)}

def offline(site): return (site[0]/'site_libs/katex').is_dir()


def test_no_warning_broken_link_or_picture_without_text(site): assert not site[1], '\n'.join(site[1])

def test_a_page_per_notebook(site):
    pages = {p.relative_to(site[0]).as_posix() for p in site[0].rglob('*.html')}
    notebooks = [p.relative_to(docs.NBS) for p in docs.NBS.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(docs.NBS).parts)]
    assert len(pages) >= len(notebooks) > 0 and (site[0]/'llms.txt').is_file()

def test_every_public_name_has_its_entry(site):
    ids, missing = {}, []
    for syms in modidx['syms'].values():
        for name,(place,_) in syms.items():
            page,anchor = place.split('#')
            if name.count('.') > 2 or name.rsplit('.', 1)[1].startswith('_'): continue   # methods are with their class
            if page not in ids: ids[page] = docs.Links(site[0]/page).ids if (site[0]/page).is_file() else set()
            if anchor not in ids[page]: missing.append(f'{name} -> {place}')
    assert not missing, missing

def test_no_page_is_heavy(site):
    assert not {p.name: p.stat().st_size for p in site[0].rglob('*.html') if p.stat().st_size > 1_500_000}

def test_no_error_in_the_browser(site, seen):
    bad = wrong(seen, lambda v: [p for p in v['problems'] if offline(site) or 'katex' not in p.lower()])
    assert not bad, bad

def test_every_formula_is_rendered(site, seen):
    if not offline(site): pytest.skip('no KaTeX to copy into the site: npm is missing, and Debian\'s libjs-katex too')
    assert sum(v['formulas'] for v in seen.values()) > 20
    assert not wrong(seen, lambda v: v['raw']), wrong(seen, lambda v: v['raw'])

def test_no_page_is_empty(seen): assert not wrong(seen, lambda v: v['text'] < 300)

def test_every_picture_is_seen(seen): assert not wrong(seen, lambda v: v['blind'])

def test_no_page_scrolls_sideways(seen): assert not wrong(seen, lambda v: v['wide'] > 0)

def test_search_works_from_a_file(site):
    if not browser.find(): pytest.skip('no Chromium here: install it (Debian: chromium) or name it in CHROMIUM')
    js = '''(async () => { const i = document.querySelector('.smalldocs-search input'); i.value = 'gradient';
      i.dispatchEvent(new Event('input', {bubbles: true})); await new Promise(r => setTimeout(r, 700));
      return document.querySelectorAll('.smalldocs-search-results a').length; })()'''
    with browser.Browser() as b, b.open((site[0]/'core.html').as_uri()) as page: assert page.eval(js) > 0
