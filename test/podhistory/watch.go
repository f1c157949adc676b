// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podhistory

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// maxKept bounds what a watcher remembers: the first faults are the telling ones.
const maxKept = 100

// Watcher looks at every status of every pod of a cluster that it gets to see.
type Watcher struct {
	stop context.CancelFunc
	all  informers.SharedInformerFactory

	mu    sync.Mutex
	seen  int      // guarded by mu
	found []string // guarded by mu
}

// Watch begins to watch; it returns when the pods that there are have been seen. Stop ends it.
func Watch(ctx context.Context, client kubernetes.Interface) (*Watcher, error) {
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	w := &Watcher{stop: stop, all: informers.NewSharedInformerFactory(client, 0)}
	pods := w.all.Core().V1().Pods().Informer()
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { w.look(nil, obj) },
		UpdateFunc: func(before, after any) {
			old, _ := before.(*corev1.Pod)
			w.look(old, after)
		},
	}); err != nil {
		stop()
		return nil, err
	}
	w.all.Start(watching.Done())
	if !cache.WaitForCacheSync(ctx.Done(), pods.HasSynced) {
		w.Stop()
		return nil, fmt.Errorf("list pods: %w", ctx.Err())
	}
	return w, nil
}

func (w *Watcher) look(before *corev1.Pod, obj any) {
	after, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen++
	if len(w.found) < maxKept {
		for _, fault := range Faults(before, after) {
			w.found = append(w.found, time.Now().UTC().Format(time.TimeOnly+".000 ")+fault)
		}
	}
}

// Stop ends the watch and returns how many statuses were seen, and what was wrong with them.
func (w *Watcher) Stop() (seen int, found []string) {
	w.stop()
	w.all.Shutdown()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.found
}
