// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Reason is what an approval or a denial says that it comes from.
const Reason = "VkFirkin"

// requestTimeout bounds a pass over one request.
const requestTimeout = 10 * time.Second

// Reasons of the events for a person: of requests that wait for one, and of those that one has approved in vain.
const (
	waitsReason  = "WaitsForApproval"
	forgetReason = "NotRemembered"
)

// Options say how certificates are decided about.
type Options struct {
	Policy Policy
	// Namespace is where the ConfigMap JoinedName is.
	Namespace string
	// Events are for who looks at a request that waits.
	Events record.EventRecorder
	Logger *slog.Logger
}

// Add makes a manager decide about certificates, while it leads.
func Add(m manager.Manager, o Options) error {
	r := newReconciler(m.GetClient(), m.GetAPIReader(), o)
	ours := predicate.NewPredicateFuncs(func(object client.Object) bool {
		csr, ok := object.(*certificatesv1.CertificateSigningRequest)
		return ok && r.concerns(csr)
	})
	return builder.ControllerManagedBy(m).Named("certificates").
		For(&certificatesv1.CertificateSigningRequest{}, builder.WithPredicates(ours)).
		Complete(r)
}

func newReconciler(cached client.Client, live client.Reader, o Options) *reconciler {
	return &reconciler{
		client: cached, live: live, register: &register{live: live, writer: cached, namespace: o.Namespace},
		policy: o.Policy, events: o.Events, logger: o.Logger, told: map[types.UID]string{},
	}
}

// reconciler decides about one request at a time.
type reconciler struct {
	client   client.Client
	live     client.Reader
	register *register
	policy   Policy
	events   record.EventRecorder
	logger   *slog.Logger

	mu   sync.Mutex
	told map[types.UID]string // guarded by mu; what was logged of requests that wait
}

// concerns tells the requests that are decided about here, and those that a person has approved.
func (r *reconciler) concerns(csr *certificatesv1.CertificateSigningRequest) bool {
	if len(csr.Status.Conditions) > 0 && approval(csr) == nil {
		return false
	}
	switch csr.Spec.SignerName {
	case certificatesv1.KubeletServingSignerName:
		return strings.HasPrefix(csr.Spec.Username, userPrefix)
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		return r.policy.byToken(csr)
	}
	return false
}

// Reconcile decides about a request. A Node that changes is seen when the request is looked at again.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	csr := &certificatesv1.CertificateSigningRequest{}
	if err := r.client.Get(ctx, req.NamespacedName, csr); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !r.concerns(csr) {
		return reconcile.Result{}, nil
	}
	cluster, policy, joined, err := r.look(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	log := r.logger.With("request", csr.Name, "signer", csr.Spec.SignerName, "requester", csr.Spec.Username)
	if name, news := policy.byHand(csr, cluster, time.Now()); name != "" {
		changed, err := r.register.write(ctx, joined, name, news)
		if errors.Is(err, errFull) { // until somebody removes names, which may be never
			message := fmt.Sprintf("%v; %s", err, cluster.dispensable())
			if r.news(csr.UID, message) {
				log.Warn("A certificate that a person has approved is not remembered", "why", message)
				r.events.Event(csr, corev1.EventTypeWarning, forgetReason, message)
			}
			return reconcile.Result{}, nil
		}
		r.forget(csr.UID)
		if changed {
			log.Info("A person has approved a certificate", "node", name)
		}
		return r.again(err)
	}
	d := policy.Decide(csr, cluster, time.Now())
	if d.Verdict == Wait {
		if r.news(csr.UID, d.Message) {
			log.Info("A certificate waits", "why", d.Message)
			if d.Person {
				r.events.Event(csr, corev1.EventTypeWarning, waitsReason, d.Message)
			}
		}
		return reconcile.Result{RequeueAfter: d.After}, nil
	}
	r.forget(csr.UID)
	if d.Verdict == Ignore {
		return reconcile.Result{}, nil
	}
	if d.Verdict == Approve { // before it is approved: a name that is given and not remembered would be given again
		_, err := r.register.write(ctx, joined, d.Node, d.Joined)
		if err != nil && (d.Joined.Key != "" || !errors.Is(err, errFull)) { // a node that is there has its certificate all the same
			return r.again(err)
		}
	}
	condition := certificatesv1.CertificateApproved
	if d.Verdict == Deny {
		condition = certificatesv1.CertificateDenied
	}
	csr = csr.DeepCopy()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: condition, Status: corev1.ConditionTrue, Reason: Reason, Message: d.Message,
	})
	if err := r.client.SubResource("approval").Update(ctx, csr); err != nil {
		if apierrors.IsNotFound(err) { // somebody was faster
			return reconcile.Result{}, nil
		}
		return r.again(fmt.Errorf("decide about certificate request %s: %w", csr.Name, err))
	}
	log.Info("Decided about a certificate", "verdict", d.Verdict.String(), "why", d.Message)
	return reconcile.Result{}, nil
}

// again is soon when somebody else was faster.
func (r *reconciler) again(err error) (reconcile.Result, error) {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return reconcile.Result{RequeueAfter: soon}, nil
	}
	return reconcile.Result{}, err
}

// maxTold bounds what is remembered of requests that were deleted while they waited.
const maxTold = 1000

// news tells whether a request waits for something else than when it was looked at last.
func (r *reconciler) news(uid types.UID, message string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[uid] == message {
		return false
	}
	if len(r.told) >= maxTold {
		clear(r.told)
	}
	r.told[uid] = message
	return true
}

func (r *reconciler) forget(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, uid)
}
