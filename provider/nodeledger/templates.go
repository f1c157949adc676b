// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider"
)

// errNotListed: the API server has not told which templates there are.
var errNotListed = errors.New("the SnapshotTemplates are not known yet: the API server has not listed them, or the CRDs are not installed")

// templateList are the templates of the cluster, translated when they come, so that a
// pod on its way pays nothing for it.
type templateList struct {
	limits Limits

	mu        sync.Mutex
	listed    bool                               // guarded by mu
	templates map[templateKey]translatedTemplate // guarded by mu; keys without revision
	listeners []func(namespace, name string)     // guarded by mu
}

type translatedTemplate struct {
	template provider.Template
	err      error
}

func (l *templateList) get(namespace, name string) (provider.Template, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.templates[templateKey{namespace: namespace, name: name}]
	switch {
	case ok:
		return t.template, t.err
	case !l.listed:
		return provider.Template{}, errNotListed
	default:
		return provider.Template{}, fmt.Errorf("SnapshotTemplate %q: %w", namespace+"/"+name, provider.ErrNotFound)
	}
}

func (l *templateList) put(t *v1alpha1.SnapshotTemplate) {
	var tt translatedTemplate
	tt.template, tt.err = TemplateOf(t.Namespace, t.Name, t.Spec.Revision(), &t.Spec, l.limits)
	if tt.err != nil {
		tt.err = fmt.Errorf("SnapshotTemplate %q: %w", t.Namespace+"/"+t.Name, tt.err)
	}
	l.mu.Lock()
	if l.templates == nil {
		l.templates = map[templateKey]translatedTemplate{}
	}
	l.templates[templateKey{namespace: t.Namespace, name: t.Name}] = tt
	l.mu.Unlock()
	l.tell(t.Namespace, t.Name)
}

func (l *templateList) remove(namespace, name string) {
	l.mu.Lock()
	delete(l.templates, templateKey{namespace: namespace, name: name})
	l.mu.Unlock()
	l.tell(namespace, name)
}

func (l *templateList) synced() {
	l.mu.Lock()
	l.listed = true
	l.mu.Unlock()
	l.tell("", "")
}

func (l *templateList) onChange(f func(namespace, name string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listeners = append(l.listeners, f)
}

// tell calls the listeners without the lock: they may ask back.
func (l *templateList) tell(namespace, name string) {
	l.mu.Lock()
	listeners := l.listeners
	l.mu.Unlock()
	for _, f := range listeners {
		f(namespace, name)
	}
}
