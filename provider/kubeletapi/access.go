// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/client-go/kubernetes"
)

// Access decides who may do what. The errors are for the client.
type Access interface {
	// Authenticate tells whose request it is; ErrUnauthenticated when nobody's.
	Authenticate(r *http.Request) (user.Info, error)
	// Authorize is nil when the user may, ErrForbidden when not; any other error means
	// that it could not be found out.
	Authorize(r *http.Request, u user.Info) error
}

// Kinds of refusals.
var (
	// ErrUnauthenticated: neither a client certificate nor a token that is known.
	ErrUnauthenticated = errors.New("unauthorized")
	// ErrForbidden: the user is known and may not.
	ErrForbidden = errors.New("forbidden")
)

// The kubelet's defaults for asking the API server
// (k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1).
const (
	tokenTTL      = 2 * time.Minute
	allowTTL      = 5 * time.Minute
	denyTTL       = 30 * time.Second
	reviewTimeout = 10 * time.Second
)

// Delegated is access as a kubelet decides it: users are known by a client
// certificate or a bearer token (TokenReview), and may what the API server says
// about the node's subresources (SubjectAccessReview). Answers are cached. Nobody
// is anonymous.
type Delegated struct {
	nodeName      string
	authenticator authenticator.Request
	authorizer    authorizer.Authorizer
}

var _ Access = (*Delegated)(nil)

// NewDelegated makes the access control of one node. client needs the right to
// create TokenReviews and SubjectAccessReviews, which nodes have.
func NewDelegated(nodeName string, client kubernetes.Interface, certs *Certificates) (*Delegated, error) {
	// A review that fails is repeated for about a second, as the kubelet does.
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}
	authn, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient:            client.AuthenticationV1(),
		TokenAccessReviewTimeout:           reviewTimeout,
		WebhookRetryBackoff:                &backoff,
		CacheTTL:                           tokenTTL,
		ClientCertificateCAContentProvider: certs.clientCA,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("set up authentication by the API server: %w", err)
	}
	authz, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: client.AuthorizationV1(),
		AllowCacheTTL:             allowTTL,
		DenyCacheTTL:              denyTTL,
		WebhookRetryBackoff:       &backoff,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("set up authorization by the API server: %w", err)
	}
	return &Delegated{nodeName: nodeName, authenticator: authn, authorizer: authz}, nil
}

// Authenticate implements Access.
func (d *Delegated) Authenticate(r *http.Request) (user.Info, error) {
	resp, ok, err := d.authenticator.AuthenticateRequest(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	if !ok {
		return nil, ErrUnauthenticated
	}
	return resp.User, nil
}

// Authorize implements Access.
func (d *Delegated) Authorize(r *http.Request, u user.Info) error {
	verb := verbOf(r)
	subresources := subresourcesOf(r.URL.Path)
	for _, sub := range subresources {
		decision, _, err := d.authorizer.Authorize(r.Context(), authorizer.AttributesRecord{
			User: u, Verb: verb, APIVersion: "v1", Resource: "nodes", Subresource: sub, Name: d.nodeName, ResourceRequest: true, Path: r.URL.Path,
		})
		if err != nil {
			return fmt.Errorf("authorize user %q: %w", u.GetName(), err)
		}
		if decision == authorizer.DecisionAllow {
			return nil
		}
	}
	return fmt.Errorf("%w (user=%s, verb=%s, resource=nodes, subresource(s)=[%s])", ErrForbidden, u.GetName(), verb, strings.Join(subresources, " "))
}

// verbOf is what the kubelet makes of a request's method, but for what changes a
// pod: a WebSocket handshake is a GET, and whoever may only look must not run
// commands by it.
func verbOf(r *http.Request) string {
	switch firstElement(r.URL.Path) {
	case "exec", "attach", "portForward":
		return "create"
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	default:
		return "" // nobody may
	}
}

func firstElement(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return first
}

// subresourcesOf names the subresources of the node of which a user needs one for a
// path, as the kubelet does with its fine-grained authorization
// (k8s.io/kubernetes/pkg/kubelet/server/auth.go), also of routes that are not served here.
func subresourcesOf(path string) []string {
	switch firstElement(path) {
	case "stats":
		return []string{"stats"}
	case "metrics":
		return []string{"metrics"}
	case "logs":
		return []string{"log"}
	case "checkpoint":
		return []string{"checkpoint"}
	case "statusz":
		return []string{"statusz"}
	case "flagz":
		return []string{"configz"}
	case "configz":
		return []string{"configz", "proxy"}
	case "pods", "runningpods":
		return []string{"pods", "proxy"}
	case "healthz":
		return []string{"healthz", "proxy"}
	default:
		return []string{"proxy"}
	}
}

// withAccess lets through to next who may.
func withAccess(access Access, logger *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := access.Authenticate(r)
		if err != nil {
			logger.Info("Refused unauthenticated request", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
			// Why is for the log only: a stranger need not learn it.
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if err := access.Authorize(r, u); err != nil {
			logger.Info("Refused request", "path", r.URL.Path, "user", u.GetName(), "error", err)
			if errors.Is(err, ErrForbidden) {
				http.Error(w, err.Error(), http.StatusForbidden)
			} else {
				http.Error(w, "Authorization error: "+err.Error(), http.StatusInternalServerError)
			}
			return
		}
		next.ServeHTTP(w, r)
	})
}
