/* Runs the worker of the search in a hidden frame where pages are opened as files.

   Browsers start no worker from a file. Elsewhere this does nothing. It has the part of the interface of Worker
   that the search of Material for MkDocs uses. */
"use strict";
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.frame = frame.contentWindow;
      this.frame.document.open();
      this.frame.document.write(
        "<script>postMessage = parent.postMessage.bind(parent);" +
          "importScripts = (...urls) => urls.reduce((done, url) => done.then(() => new Promise((loaded, failed) => {" +
          "const script = document.createElement('script'); script.src = url; script.onload = loaded;" +
          "script.onerror = failed; document.body.appendChild(script); })), Promise.resolve());</script>" +
          '<body><script src="' + url + '"></script></body>'
      );
      this.frame.document.close();
      window.addEventListener("message", event => {
        if (event.source === this.frame) {
          const copy = new MessageEvent("message", { data: event.data });
          this.dispatchEvent(copy);
          if (this.onmessage) this.onmessage(copy);
        }
      });
      this.ready = new Promise(loaded => {
        if (this.frame.document.readyState === "complete") loaded();
        else this.frame.addEventListener("load", loaded);
      });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.frameElement.remove();
    }
  };
}
